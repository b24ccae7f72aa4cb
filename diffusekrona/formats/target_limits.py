"""What a target cannot hold: refused by name, or left out where the user asked for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ..bases.components import is_text_encoder
from ..bases.families import FAMILIES
from ..common.errors import UserError
from .delta_set import DeltaSet
from .full_model import FullModel
from .report import Options
from .targets import TARGETS


def with_base(source: DeltaSet, base: FullModel | None) -> DeltaSet:
    """The source with the deltas that depend on the base's weights worked out.

    Raises:
        UserError: there are some, and no base is given or it does not fit.
    """
    if not source.need_base:
        return source
    name, first = next(iter(source.need_base.items()))
    if base is None:
        raise UserError(
            f"{len(source.need_base)} layers are {first.kind}, whose deltas depend on the base's "
            f"weights, the first {name}: add --base (--to merged, --to lora and --to lora-kohya "
            "are exact then)."
        )
    base.check_layers({n: d.shape for n, d in source.need_base.items()}, source.title)
    made = {n: d.make(partial(base.weight, n)) for n, d in source.need_base.items()}
    return replace(source, layers=source.layers | made, need_base={})


def held_by(
    target: str, source: DeltaSet, options: Options, base: FullModel | None = None
) -> DeltaSet:
    """The source without what `target` has no place for.

    Args:
        options: whether it is left out, which the notes say; otherwise it is refused.
        base: what is merged into.

    Raises:
        UserError: naming the part, or because nothing would be left.
    """
    notes = list(source.notes)
    family, known = FAMILIES.get(source.family or ""), TARGETS[target]
    is_transformer = family is not None and bool(family.block_layers)
    if family and is_transformer and known.not_transformers:
        raise UserError(
            f"--to {target} is not written for {family.title}: write --to lora, lokr, merged "
            "or krona."
        )
    if known.only_transformers and not is_transformer:
        titles = " and ".join(own.title for own in FAMILIES.values() if own.block_layers)
        raise UserError(
            f"--to {target} is written for {titles}: write --to {known.only_transformers}."
        )

    def leave_out(
        parts: Mapping[str, object],
        what: str,
        way_out: str,
        skip: bool = options.skip_unsupported,
    ) -> None:
        if not parts:
            return
        names = f"{len(parts)} {what}, the first {next(iter(parts))}"
        if not skip:
            raise UserError(
                f"--to {target} cannot hold {names}: {way_out}, or leave out what it cannot "
                "hold with --skip_unsupported."
            )
        notes.append(f"left out {names}")

    layers, vectors, bundled = source.layers, source.vectors, source.bundled
    if target != "merged":
        leave_out(vectors, "changes of norms and biases", "write --to merged")
        vectors = {}
    elif base is not None:  # PEFT's lora_bias gives a bias to layers that have none
        lacking = {n: v for n, v in vectors.items() if not base.locate(*n.rsplit(".", 1))}
        leave_out(lacking, f"changes of what {base.root} lacks", "choose another base")
        vectors = {n: v for n, v in vectors.items() if n not in lacking}
    if not known.bundled:
        others = " or ".join(own.name for own in TARGETS.values() if own.bundled)
        leave_out(bundled, "textual inversions", f"write --to {others}")
        bundled = {}
    if not known.text_encoders:
        others = {n: d for n, d in layers.items() if is_text_encoder(n)}
        leave_out(others, "layers of text encoders", "write --to lora")
        layers = {n: d for n, d in layers.items() if n not in others}
    if target == "peft-lora":
        kernels = {n: d for n, d in layers.items() if d.kernel}
        leave_out(kernels, "convolutions", "write --to lora", options.without_convolutions)
        layers = {n: d for n, d in layers.items() if n not in kernels}
    if not layers and not vectors:
        raise UserError(f"--to {target} can hold no layer of {source.title}.")
    return replace(source, layers=layers, vectors=vectors, bundled=bundled, notes=notes)
