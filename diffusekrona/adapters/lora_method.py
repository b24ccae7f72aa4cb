"""LoRA, the baseline."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .method import (
    Method,
    Shape,
    Targets,
    Tensors,
    norm_of_products,
    valid_scale,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from .deltas import Delta, LowRankDelta


def _lora_config(settings: Any, targets: Targets) -> PeftConfig:
    """PEFT's LoRA, started as diffusers' DreamBooth scripts start it."""
    from peft import LoraConfig

    if settings.rank < 1:
        raise UserError(f"--rank must be at least 1, not {settings.rank}.")
    return LoraConfig(
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


def _lora_norm(layer: Any, name: str) -> torch.Tensor:
    """Of a sum of outer products of the rows of A and the columns of B."""
    a, b = (part[name].weight.float() for part in (layer.lora_A, layer.lora_B))
    return norm_of_products(a.flatten(1), b.flatten(1).t()) * abs(layer.scaling[name])


def _lora_multiplications(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _lora_fill(own: Tensors, delta: Delta | None, config: Any) -> dict[str, torch.Tensor]:
    """The delta in the first ranks; the others are zero."""
    from .deltas import to_low_rank

    down, up = own["lora_A.weight"].clone(), own["lora_B.weight"].clone()
    up.zero_()
    if delta is not None:
        low = to_low_rank(delta)
        rank = low.down.shape[0]
        if (low.up.shape[0], low.down.shape[1]) != (up.shape[0], down.shape[1]):
            raise UserError("it is of another shape.")
        if rank > down.shape[0]:
            raise UserError(f"it has rank {rank}: give --rank {rank}, or more.")
        down[:rank] = low.down
        up[:, :rank] = low.up / lora_scale(config, "it")
    return {"lora_A.weight": down, "lora_B.weight": up}


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


def lora_of(
    layers: Mapping[str, LowRankDelta],
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """The LoRA of one component, exact and with scale 1: its configuration and its tensors.

    Args:
        layers: by module path; those of another rank than the commonest are in the patterns.
    """
    from peft import LoraConfig

    rank = Counter(delta.rank for delta in layers.values()).most_common(1)[0][0]
    pattern = {path: delta.rank for path, delta in layers.items() if delta.rank != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(layers),
    )
    tensors: dict[str, torch.Tensor] = {}
    for path, delta in layers.items():
        tensors[f"{path}.lora_A.weight"] = delta.down.contiguous()
        tensors[f"{path}.lora_B.weight"] = delta.up.contiguous()
    return config, tensors


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


LORA = Method(
    name="lora",
    title="LoRA",
    config_path="peft:LoraConfig",
    tensor_names=("lora_A.weight", "lora_B.weight"),
    settings=("rank", "lora_alpha"),
    make_config=_lora_config,
    delta=_lora_delta,
    describe=lambda config: f"rank {config.r}",
    size=lambda shapes: f"rank {shapes['lora_A.weight'][0]}",
    multiplications=_lora_multiplications,
    fill=_lora_fill,
    norm=_lora_norm,
    read_config=_lora_from_file,
    formats=("lora", "merged"),
    learning_rate=1e-4,  # as in diffusers' documented DreamBooth LoRA runs
    pocket_learning_rate=6e-4,
)
