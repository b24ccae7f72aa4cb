"""Adapters to draw with: read from their files, put on a pipeline with a weight each, merged.

Importing this module imports neither torch nor PEFT, so that `--help` stays fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bases.bundled import bundled_models
from ..common.errors import UserError
from ..common.paths import as_path
from ..common.weights import given_weight, split_weight
from .layout import FILES, default_weight

if TYPE_CHECKING:
    from .file import Adapter
    from .groups import GroupWeights


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter read from its file, the weight that its delta is multiplied by, and further
    weights for groups of its layers."""

    path: Path
    weight: float
    adapter: Adapter
    groups: GroupWeights | None = None

    @property
    def title(self) -> str:
        """For people: the run's name, and the weight if it is not 1."""
        name = run_name(self.path, self.adapter)
        name += "" if self.weight == 1 else f" x {self.weight:g}"
        return f"{name} ({self.groups})" if self.groups else name

    def recipe(self) -> dict[str, Any]:
        """What a picture's recipe records of it; only as much of the path as identifies it."""
        from ..bases.fingerprint import fingerprint_of
        from ..common.pictures import content_key

        path = self.path.absolute()
        digest = fingerprint_of(str(path)) if path.is_dir() else content_key(path)
        recipe = {"file": "/".join(path.parts[-2:]), "weight": self.weight, "sha256": digest}
        return recipe | (self.groups.as_dict() if self.groups else {})


def run_name(path: Path, adapter: Adapter) -> str:
    """What a run is called: its folder's name, or what the file says of it where that name is a
    hash or "run", as in a study's cells."""
    own = path.absolute()
    folder = own.parent if own.name in FILES else own
    name = folder.name if folder.suffix != ".safetensors" else folder.stem
    if re.fullmatch(r"checkpoint-\d+|checkpoint-best|best", name):
        name = f"{folder.parent.name}/{name}"
    if not re.fullmatch(r"(run|[0-9a-f]{8,64})(/.*)?", name):
        return name
    said = adapter.metadata
    parts = [said.get("instance_prompt"), adapter.method.title]
    words = {"learning_rate": "learning rate {}", "steps": "{} steps", "seed": "seed {}"}
    parts += [text.format(said[key]) for key, text in words.items() if said.get(key)]
    return ", ".join(filter(None, parts))


def read_adapters(
    texts: Sequence[str], groups: GroupWeights | None = None
) -> list[WeightedAdapter]:
    """Every `--adapter`, read and checked.

    Args:
        groups: weights of groups of layers, the same for all adapters.

    Raises:
        UserError: an adapter that is missing or damaged; a group that none of them has.
    """
    from .groups import places_of

    read = [read_weighted(text, groups) for text in texts]
    if groups:
        groups.check(place for one in read for place in places_of(one.adapter))
    return read


def reading_options(
    adapters: Sequence[WeightedAdapter], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How a base is read and drawn: as given, else as the adapters were trained on it.

    Args:
        given: of `bases.settings.ReadingSettings.options`.

    Returns:
        What `sampling.pipeline.load_pipeline` takes.

    Raises:
        UserError: adapters that were trained to predict different things.
    """
    found = dict(given or {})
    notes = [mixed.adapter.metadata for mixed in adapters]
    kinds = {note.get("prediction_type") for note in notes}
    if "prediction_type" not in found and len(kinds) > 1:
        named = " and ".join(sorted(kind or "the base's own" for kind in kinds))
        raise UserError(
            f"The adapters were trained with different prediction types, {named}: choose one with "
            "--prediction_type."
        )
    for note in notes:
        if note.get("prediction_type"):
            found.setdefault("prediction_type", note["prediction_type"])
        if note.get("rescale_betas_zero_snr") == "true":
            found.setdefault("rescale_betas_zero_snr", True)
        configs = note.get("single_file_config") or "/nowhere"
        if configs in bundled_models() or as_path(configs).is_dir():
            found.setdefault("single_file_config", configs)
    return found


def choose_base(
    name: str | None,
    adapters: Sequence[WeightedAdapter],
    revision: str | None = None,
    single_file_config: str | None = None,
) -> str:
    """The base asked for, or the one that the adapters were trained on.

    Raises:
        UserError: none is known, or several are; or the base is not of an adapter's family, which
            is determined from the base's config alone, before its weights are fetched.
    """
    from ..bases.families import identify
    from ..bases.resolve import resolve_base
    from .file import check_family

    named = [mixed.adapter.metadata.get("base_model") for mixed in adapters]
    named = list(dict.fromkeys(filter(None, named)))
    if name is None and len(named) > 1:
        raise UserError(
            f"The adapters were trained on different bases, {' and '.join(named)}: choose one with "
            "--pretrained_model_name_or_path."
        )
    base = name or next(iter(named), None)
    if base is None:
        where = "the adapter does not name its base" if adapters else "there is no --adapter either"
        raise UserError(f"No base model: give --pretrained_model_name_or_path ({where}).")
    try:
        family, _ = identify(resolve_base(base, single_file_config), revision)
    except UserError as error:
        if name is None:
            hint = "it is what the adapter was trained on; --pretrained_model_name_or_path moves it"
            raise UserError(f"{error} ({hint})") from error
        raise
    for mixed in adapters:
        check_family(mixed.adapter, family, str(mixed.path))
    return base


def parse_adapter(text: str) -> tuple[Path, float]:
    """`PATH[:WEIGHT]` to `adapter_file` and its weight. Raises as `split_weight` does."""
    from .file import adapter_file

    path, weight = split_weight(text)
    return adapter_file(path), weight


def read_weighted(text: str, groups: GroupWeights | None = None) -> WeightedAdapter:
    """The adapter of `PATH[:WEIGHT]`; without a weight, at the one that its file names, or at 1.

    Raises:
        UserError: an adapter that is missing or damaged.
    """
    from .file import adapter_file, read_adapter

    path, weight = given_weight(text)
    file = adapter_file(path)
    adapter = read_adapter(file)
    weight = default_weight(adapter.metadata) if weight is None else weight
    return WeightedAdapter(file, weight, adapter, groups)


def apply_adapters(pipeline: Any, adapters: Sequence[WeightedAdapter], merge: bool = True) -> None:
    """Put adapters on a pipeline, each with its weight; by default merge them all for good.

    Raises:
        UserError: one does not fit the base.
    """
    from ..bases.families import components_of
    from ..krona import merge_and_unload
    from .file import put_adapter
    from .groups import set_group_weights

    for number, mixed in enumerate(adapters):
        name = f"adapter_{number}"
        put_adapter(pipeline, mixed.adapter, name, mixed.weight, str(mixed.path))
        if mixed.groups:
            set_group_weights(pipeline, name, mixed.groups, mixed.weight, allow_unknown=True)
    for part in components_of(pipeline).values():
        if merge and getattr(part, "peft_config", None):
            merge_and_unload(part)


def merge_for_now(model: Any) -> Callable[[], None]:
    """Merge live adapters, so that a picture costs what it costs on the base.

    Args:
        model: a denoiser, a pipeline or a mapping of components, whose weights are on its device.

    Returns:
        A function that makes the adapters live again and gives the base weights back bit for bit.
        Until then host memory holds a copy of those that have an adapter.

    Raises:
        ValueError: a quantised weight; nothing is merged then.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from ..bases.families import components_of
    from .methods import method_of

    layers = [
        (layer, [method_of(part.peft_config[name]) for name in layer._get_available_adapters()])
        for part in components_of(model).values()
        for layer in reversed(list(part.modules()))  # of two on one weight, the inner one first
        if isinstance(layer, BaseTunerLayer)
    ]
    copies: dict[Any, Any] = {}

    def undo() -> None:
        for weight, copy in copies.items():
            weight.data.copy_(copy)
        for layer, _ in layers:
            layer.merged_adapters.clear()

    try:
        for layer, methods in layers:
            for weight in layer.get_base_layer().parameters(recurse=False):
                if weight not in copies:
                    copies[weight] = weight.data.to("cpu", copy=True)
            layer.merge(**{k: v for m in methods for k, v in m.merge_without_copy.items()})
    except BaseException:
        undo()
        raise
    return undo
