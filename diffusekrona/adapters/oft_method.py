"""OFT: rotations of the base's weights, W R, as PEFT trains them.

R has blocks of `oft_block_size` on its diagonal, each near a rotation: the Cayley-Neumann series of
a skew-symmetric matrix, whose entries above the diagonal are what is trained. There is no delta W
without the base, so that an adapter is trained, saved and drawn as the other methods' are, but has
no weight, and is neither converted nor inspected.

Source: Qiu et al. 2023, arXiv 2306.07280; huggingface/peft `tuners/oft`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .method import Method, Targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from peft import PeftConfig

    from .method import Shape

_WEIGHT = "oft_R.weight"  # (blocks, entries above the diagonal of one)


def _oft_config(settings: Any, targets: Targets) -> PeftConfig:
    from peft import OFTConfig

    return OFTConfig(oft_block_size=settings.oft_block_size, target_modules=list(targets.names))


def _oft_norm(layer: Any, name: str) -> torch.Tensor:
    """Of W R - W. Merged as PEFT does: R times the transposed weight."""
    weight = layer.get_base_layer().weight.detach().float().t()
    return (layer.get_delta_weight(name).float() @ weight - weight).norm()


def _block(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Number of blocks, and the side b of one: b (b - 1) / 2 entries are above its diagonal."""
    blocks, entries = shapes[_WEIGHT]
    return blocks, round((1 + (1 + 8 * entries) ** 0.5) / 2)


def _oft_size(shapes: Mapping[str, Shape]) -> str:
    blocks, side = _block(shapes)
    return f"{blocks} blocks of {side}x{side}"


def _oft_multiplications(shapes: Mapping[str, Shape]) -> int:
    blocks, side = _block(shapes)
    return blocks * side * side


OFT = Method(
    name="oft",
    title="OFT",
    config_path="peft:OFTConfig",
    tensor_names=(_WEIGHT,),
    settings=("oft_block_size",),
    make_config=_oft_config,
    delta=None,
    describe=lambda config: f"blocks of {config.oft_block_size}",
    size=_oft_size,
    multiplications=_oft_multiplications,
    norm=_oft_norm,
    formats=(),
    zero_tensors=(_WEIGHT,),
)
