"""One record per adapter method: everything that the rest of the package wants to know of it.

Adding a method that PEFT has, or that is registered with PEFT as KronA is, means adding a record
here and its settings, if it needs new ones, to the training settings. The layers, shapes and counts
of a method come from PEFT itself (`layers.py`), so a record holds only what PEFT does not know.

Importing this module imports neither torch nor PEFT, so that `--help` stays fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ..bases.components import denoiser_name, is_text_encoder
from ..common.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from .deltas import Delta

Shape = tuple[int, ...]
Tensors = Mapping[str, "torch.Tensor"]  # one layer's, by the names in `Method.tensor_names`
ConfigReader = Callable[[Mapping[str, Any], Mapping[str, Tensors], object], "PeftConfig"]
LOW_RANK_FORMATS = ("lora", "lora-kohya", "lora-ai-toolkit", "peft-lora")
KRONECKER_FORMATS = ("krona", "peft", "lokr", "lokr-diffusers", "lokr-lycoris", "lokr-ai-toolkit")


@dataclass(frozen=True)
class Targets:
    """The layers of one component that get an adapter.

    Attributes:
        names: ends of the layers' names, such as "to_q".
        letters: of k, q, v, o, each to the name endings that it selects.
        component: as the base's pipeline names it.
    """

    names: tuple[str, ...]
    letters: Mapping[str, tuple[str, ...]]
    component: str


@dataclass(frozen=True)
class Method:
    """One adapter method.

    Attributes:
        name: in files and on the command line; PEFT's type in lower case.
        title: as people write it.
        config_path: "module:class" of its PEFT configuration.
        tensor_names: ends of the keys of one layer's tensors in a file.
        settings: the training settings that it reads.
        make_config: (settings, targets) to the PEFT configuration. Raises UserError.
        delta: (tensors, configuration, layer name) to delta W with the scale in it. Raises
            UserError for a configuration that makes no sense.
        describe: the configuration in a few words, for the model card.
        size: the shapes of a layer's tensors in a few words, for the dry run.
        read_config: (settings from a file, layer to tensors, where) to a configuration of which
            nothing is left unchecked; by default its plain numbers. Raises UserError.
        fit: (configuration, layer name to tensors) to the configuration under which PEFT makes
            tensors of these shapes; by default the same one.
        formats: targets of the converter that hold the method exactly.
        merging_code: (configurations by component, file name) to Python lines for the model card,
            which merge the file into `pipe` with torch and safetensors alone.
        autocast: whether its layers need autocast in mixed precision; without it they cast by
            themselves.
        learning_rate: the default of the training program and of the scripts.
    """

    name: str
    title: str
    config_path: str
    tensor_names: tuple[str, ...]
    settings: tuple[str, ...]
    make_config: Callable[[Any, Targets], PeftConfig]
    delta: Callable[[Tensors, Any, str], Delta]
    describe: Callable[[Any], str]
    size: Callable[[Mapping[str, Shape]], str]
    read_config: ConfigReader | None = None
    fit: Callable[[Any, Mapping[str, Tensors]], Any] = lambda config, layers: config
    formats: tuple[str, ...] = ("merged",)
    merging_code: Callable[[Mapping[str, Any], str], str] | None = None
    autocast: bool = True
    learning_rate: float = 1e-4

    @property
    def config_class(self) -> Callable[..., PeftConfig]:
        return resolve_name(self.config_path)

    def config_from_file(
        self, values: Mapping[str, Any], layers: Mapping[str, Tensors], where: object
    ) -> PeftConfig:
        """The configuration that a file holds, checked. Raises UserError."""
        from .file_config import plain_config

        if self.read_config is not None:
            return self.read_config(values, layers, where)
        return plain_config(self.config_class, values, layers, where)

    def layer_of(self, key: str) -> tuple[str, str] | None:
        """(layer, tensor name) of a key; None for a key that is not one of this method's."""
        for end in self.tensor_names:
            if key.endswith("." + end):
                return key[: -len(end) - 1], end
        return None

    def by_layer(self, tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors grouped by layer; keys that are not this method's are left out."""
        layers: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if found := self.layer_of(key):
                layers.setdefault(found[0], {})[found[1]] = tensor
        return layers


METHODS: dict[str, Method] = {}


def is_second_factor(parameter: str) -> bool:
    """Whether a model's parameter, by its name, is the factor of an adapter that starts at 0."""
    ends = {method.tensor_names[1].split(".")[0] for method in METHODS.values()}
    return not ends.isdisjoint(parameter.split("."))


def register(method: Method) -> Method:
    """Add a method to those that the package knows. Raises ValueError for a name that is taken."""
    if method.name in METHODS:
        raise ValueError(f"There is already an adapter method named {method.name!r}.")
    METHODS[method.name] = method
    return method


def method_of(config: PeftConfig) -> Method:
    """The record of a PEFT configuration's method. Raises LookupError for an unknown one."""
    return METHODS[str(getattr(config.peft_type, "value", config.peft_type)).lower()]


def valid_scale(value: object, where: object) -> float:
    """A scale from a file's configuration.

    Raises:
        UserError: not a number, or not between -1e6 and 1e6; `where` is named.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
        return float(value)
    raise UserError(f"{where} has a damaged config: a scale of {value!r}.")  # also for NaN


# --- KronA ----------------------------------------------------------------------------------------


def _krona_config(settings: Any, targets: Targets) -> PeftConfig:
    a1, a2, pairs = settings.a1, settings.a2, {}
    if not is_text_encoder(targets.component):
        pairs = parse_factors(settings.factors)
        chosen = [k for k, ends in targets.letters.items() if {*ends} <= {*targets.names}]
        extra = [letter for letter in pairs if letter not in chosen]
        if extra:
            raise UserError(
                f"--factors gives {extra[0]!r}, but --attn_update_unet is {''.join(chosen)!r}."
            )
    else:
        a1, a2 = settings.text_encoder_a1 or a1, settings.text_encoder_a2 or a2
    return METHODS["krona"].config_class(
        a1=a1,
        a2=a2,
        target_modules=list(targets.names),
        factor_pattern={end: pairs[k] for k in pairs for end in targets.letters[k]},
        scale=settings.krona_scale,
        terms=settings.terms,
        init_weights=settings.init_weights,
        output_order=settings.output_order,
    )


def parse_factors(text: str | None) -> dict[str, tuple[int, int]]:
    """Parse "k=8x64,o=2x64" to {"k": (8, 64), "o": (2, 64)}.

    Raises:
        UserError: anything else, naming the piece.
    """
    pairs: dict[str, tuple[int, int]] = {}
    for piece in filter(None, re.split(r"[,;\s]+", text or "")):
        match = re.fullmatch(r"([kqvo])[=:](\d+)[x×](\d+)", piece)
        if not match or int(match[2]) < 1 or int(match[3]) < 1:
            raise UserError(
                f"--factors: cannot read {piece!r}; write letters of kqvo with their a1 x a2, "
                "as in --factors k=8x64,o=2x64"
            )
        pairs[match[1]] = (int(match[2]), int(match[3]))
    return pairs


def _krona_delta(tensors: Tensors, config: Any, layer: str) -> Delta:
    from .deltas import KronDelta

    a, b = tensors["krona_a"].float(), tensors["krona_b"].float()
    if a.shape[:-2] != b.shape[:-2]:
        raise UserError(f"{layer}: krona_a and krona_b differ in their number of terms.")
    a, b = (a, b) if a.dim() == 3 else (a[None], b[None])
    return KronDelta(a, b, valid_scale(config.scale, layer), config.output_order)


def _krona_words(config: Any) -> str:
    text = f"A ({config.a1}, {config.a2})"
    own = {f"{k} ({a}, {b})" for k, (a, b) in config.factor_pattern.items()}
    text += f", {len(own)} patterns of their own" if own else ""
    text += f", {config.terms} terms" if config.terms > 1 else ""
    return text + (f", {config.output_order} rows" if config.output_order != "kron" else "")


def _krona_size(shapes: Mapping[str, Shape]) -> str:
    (*terms, a1, a2), (b1, b2) = shapes["krona_a"], shapes["krona_b"][-2:]
    return f"{a1}x{a2} (x) {b1}x{b2}" + "".join(f" x{n}" for n in terms)


def _krona_fit(config: Any, layers: Mapping[str, Tensors]) -> Any:
    from ..krona.model import factors_of

    for name, tensors in layers.items():
        pair = tuple(tensors["krona_a"].shape[-2:])
        if factors_of(config, name) != pair:
            config.factor_pattern = {name: pair, **config.factor_pattern}
    return config


def _krona_from_file(
    values: Mapping[str, Any], layers: Mapping[str, Tensors], where: object
) -> PeftConfig:
    from .file_config import krona_config

    shapes = {}
    for name, own in layers.items():
        a, b = own["krona_a"].shape, own["krona_b"].shape
        if a[:-2] != b[:-2]:
            raise UserError(f"{where}: {name}'s krona_a and krona_b differ in number of terms.")
        shapes[name] = (a[0] if len(a) == 3 else 1, a[-2], a[-1])
    return krona_config(values, shapes, where)


def _krona_merging_code(configs: Mapping[str, Any], file: str) -> str:
    """W += scale * sum of kron(A, B)."""
    parts = sorted(configs, key=len, reverse=True)
    scales = {name: config.scale for name, config in configs.items()}
    delta = "torch.kron(a_i, b_i)"
    if {config.output_order for config in configs.values()} == {"interleaved"}:
        # rows counted as the published code counts them
        delta += ".view(len(a_i), len(b_i), -1).transpose(0, 1).reshape(layer.weight.shape)"
    return f"""import torch
from safetensors.torch import load_file

factors, scales = load_file("{file}"), {scales!r}
for key in [k for k in factors if k.endswith(".krona_a")]:
    name = key.removesuffix(".krona_a")
    part = next((p for p in {parts!r} if name.startswith(p + ".")), "{denoiser_name(parts)}")
    layer = getattr(pipe, part).get_submodule(name.removeprefix(part + "."))
    a, b = factors[key].float(), factors[name + ".krona_b"].float()
    terms = zip(a.view(-1, *a.shape[-2:]), b.view(-1, *b.shape[-2:]))
    delta = scales[part] * sum({delta} for a_i, b_i in terms)
    layer.weight.data += delta.to(layer.weight)"""


KRONA = register(
    Method(
        name="krona",
        title="KronA",
        config_path="diffusekrona.krona:KronAConfig",
        tensor_names=("krona_a", "krona_b"),
        settings=(
            "a1", "a2", "text_encoder_a1", "text_encoder_a2", "factors", "krona_scale", "terms",
            "init_weights", "output_order",
        ),
        make_config=_krona_config,
        delta=_krona_delta,
        describe=_krona_words,
        size=_krona_size,
        read_config=_krona_from_file,
        fit=_krona_fit,
        formats=(*KRONECKER_FORMATS, *LOW_RANK_FORMATS, "merged"),
        merging_code=_krona_merging_code,
        autocast=False,  # its layers cast their factors themselves
        learning_rate=6e-4,  # the paper's optimum is 5e-4 to 6e-4
    )
)  # fmt: skip


# --- LoRA -----------------------------------------------------------------------------------------


def _lora_config(settings: Any, targets: Targets) -> PeftConfig:
    """PEFT's LoRA, started as diffusers' DreamBooth scripts start it."""
    if settings.rank < 1:
        raise UserError(f"--rank must be at least 1, not {settings.rank}.")
    return METHODS["lora"].config_class(
        r=settings.rank,
        lora_alpha=settings.rank if settings.lora_alpha is None else settings.lora_alpha,
        init_lora_weights="gaussian",
        target_modules=list(targets.names),
    )


def _lora_delta(tensors: Tensors, config: Any, layer: str) -> Delta:
    from .deltas import LowRankDelta

    up, down = tensors["lora_B.weight"].float(), tensors["lora_A.weight"].float()
    if up.shape[1] != down.shape[0]:
        raise UserError(f"{layer}: lora_A and lora_B differ in rank.")
    kernel = tuple(down.shape[2:])
    return LowRankDelta(up.flatten(1) * lora_scale(config, layer), down.flatten(1), kernel)


def _lora_from_file(
    values: Mapping[str, Any], layers: Mapping[str, Tensors], where: object
) -> PeftConfig:
    from .file_config import lora_config

    ranks = {}
    for name, own in layers.items():
        down, up = own["lora_A.weight"].shape, own["lora_B.weight"].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise UserError(f"{where}: {name}'s lora_A and lora_B differ in rank.")
        ranks[name] = down[0]
    return lora_config(values, ranks, where)


def lora_scale(config: Any, layer: str) -> float:
    """What PEFT multiplies a LoRA layer by.

    Raises:
        UserError: a LoRA with more than two factors, or a configuration that makes no sense.
    """
    from peft.utils.other import get_pattern_key

    if config.use_dora or config.lora_bias:
        raise UserError("a LoRA with DoRA magnitudes or biases is more than a product of factors.")
    try:
        ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), layer), config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), layer), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise UserError(f"{layer} has a damaged config ({error}).") from error
    return valid_scale(scale, layer)


LORA = register(
    Method(
        name="lora",
        title="LoRA",
        config_path="peft:LoraConfig",
        tensor_names=("lora_A.weight", "lora_B.weight"),
        settings=("rank", "lora_alpha"),
        make_config=_lora_config,
        delta=_lora_delta,
        describe=lambda config: f"rank {config.r}",
        size=lambda shapes: f"rank {shapes['lora_A.weight'][0]}",
        read_config=_lora_from_file,
        formats=(*LOW_RANK_FORMATS, "merged"),
        learning_rate=1e-4,  # as in diffusers' documented DreamBooth LoRA runs
    )
)


def targets_of(
    letters: str,
    names: Mapping[str, tuple[str, ...]],
    component: str,
    feed_forward: Sequence[str] = (),
) -> Targets:
    """The layers that letters of kqvo name, and the feed-forward layers given beside them.

    Raises:
        UserError: a letter that is none of kqvo, or nothing at all.
    """
    unknown = [letter for letter in letters if letter not in names]
    if unknown or not (letters or feed_forward):
        flag = "--attn_update_text" if is_text_encoder(component) else "--attn_update_unet"
        raise UserError(f"{flag} {letters!r}: give some of the letters k, q, v, o, such as kqvo.")
    projections = (end for letter in dict.fromkeys(letters) for end in names[letter])
    return Targets((*projections, *feed_forward), names, component)
