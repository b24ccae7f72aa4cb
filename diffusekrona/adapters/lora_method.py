"""LoRA, the baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .method import LOW_RANK_FORMATS, Method, Targets, Tensors, valid_scale

if TYPE_CHECKING:
    from peft import PeftConfig

    from .deltas import Delta


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
    read_config=_lora_from_file,
    formats=(*LOW_RANK_FORMATS, "merged"),
    learning_rate=1e-4,  # as in diffusers' documented DreamBooth LoRA runs
)
