"""LoKr: LyCORIS's Kronecker product of nearly square factors, as PEFT trains it.

The first factor is as near to `decompose_factor` rows and columns as the layer's sizes allow; the
second is itself a product of rank `rank` where that is less than half of its side.

Source: huggingface/peft `tuners/lokr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .method import Method, Targets, Tensors, valid_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig

    from .deltas import Delta
    from .method import Shape


def _lokr_config(settings: Any, targets: Targets) -> PeftConfig:
    """Started as LyCORIS starts it: the second factor at 0."""
    from peft import LoKrConfig

    factor = settings.decompose_factor
    if factor < 1 and factor != -1:
        raise UserError(f"--decompose_factor must be -1 or at least 1, not {factor}.")
    return LoKrConfig(
        r=settings.rank,
        alpha=settings.rank if settings.lora_alpha is None else settings.lora_alpha,
        decompose_factor=factor,
        init_weights="lycoris",
        target_modules=list(targets.names),
    )


def _lokr_delta(tensors: Tensors, config: Any, layer: str) -> Delta:
    from .deltas import KronDelta

    a, b = _factor(tensors, "lokr_w1"), _factor(tensors, "lokr_w2")
    return KronDelta(a[None], b[None], valid_scale(config.alpha / config.r, layer))


def _factor(tensors: Tensors, name: str) -> Any:
    """A factor, or the product of the two that it is kept as."""
    for key, tensor in tensors.items():
        if key.startswith(name) and tensor.dim() != 2:
            raise UserError(f"{key} of shape {tuple(tensor.shape)} is not a matrix.")
    if name in tensors:
        return tensors[name].float()
    one, two = tensors[name + "_a"].float(), tensors[name + "_b"].float()
    if one.shape[1:] != two.shape[:1]:
        raise UserError(f"{name}_a and {name}_b differ in rank.")
    return one @ two


def _lokr_size(shapes: Mapping[str, Shape]) -> str:
    def of(name: str) -> Shape:
        return shapes.get(name) or (shapes[name + "_a"][0], shapes[name + "_b"][1])

    (a1, a2), (b1, b2) = of("lokr_w1"), of("lokr_w2")
    rank = f" of rank {shapes['lokr_w2_b'][0]}" if "lokr_w2_b" in shapes else ""
    return f"{a1}x{a2} (x) {b1}x{b2}{rank}"


def _lokr_words(config: Any) -> str:
    factor = config.decompose_factor
    return f"rank {config.r}" + ("" if factor == -1 else f", factor {factor}")


LOKR = Method(
    name="lokr",
    title="LoKr",
    config_path="peft:LoKrConfig",
    tensor_names=("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    settings=("rank", "lora_alpha", "decompose_factor"),
    make_config=_lokr_config,
    delta=_lokr_delta,
    describe=_lokr_words,
    size=_lokr_size,
    formats=("krona", "lokr", "lora", "merged"),
    learning_rate=1e-3,
    variants=tuple(
        (*one, *two)
        for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    zero_tensors=("lokr_w2", "lokr_w2_b"),
)
