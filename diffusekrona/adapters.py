"""From what a user asks for (letters, factors, rank) to one PEFT config a component.

The letters are those of the published scripts: k, q, v, o for the attention's key, query, value and
output projections. Factors are (a1, a2) with a1 dividing out_features and a2 in_features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import nn

from .errors import UserError
from .krona import KronAConfig, check_factors, target_layers
from .krona.model import factors_of

UNET_LETTERS = {"k": "to_k", "q": "to_q", "v": "to_v", "o": "to_out.0"}
TEXT_LETTERS = {"k": "k_proj", "q": "q_proj", "v": "v_proj", "o": "out_proj"}
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer of the plan: where it is, its size, its factors or rank, what is trained in it."""

    component: str
    name: str
    out_features: int
    in_features: int
    factors: str
    parameters: int


def parse_factors(text: str | None) -> dict[str, tuple[int, int]]:
    """ "k=8x64,o=2x64" to {"k": (8, 64), "o": (2, 64)}.

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


def krona_config(
    letters: str,
    a1: int,
    a2: int,
    factors: Mapping[str, tuple[int, int]] | None = None,
    names: Mapping[str, str] = UNET_LETTERS,
    feed_forward: bool = False,
    **options: Any,
) -> KronAConfig:
    """A KronA config for the projections named by `letters`.

    Raises:
        UserError: a letter that is none of kqvo, none at all, or factors for one left out.
    """
    targets = _targets(letters, names, feed_forward)
    extra = [letter for letter in factors or {} if letter not in letters]
    if extra:
        raise UserError(f"--factors gives {extra[0]!r}, but --attn_update_unet is {letters!r}.")
    pattern = {names[letter]: pair for letter, pair in (factors or {}).items()}
    try:
        return KronAConfig(a1=a1, a2=a2, target_modules=targets, factor_pattern=pattern, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def lora_config(
    letters: str,
    rank: int,
    alpha: float | None = None,
    names: Mapping[str, str] = UNET_LETTERS,
    feed_forward: bool = False,
) -> LoraConfig:
    """PEFT's LoRA on the same projections, started as diffusers' DreamBooth scripts start it."""
    if rank < 1:
        raise UserError(f"--rank must be at least 1, not {rank}.")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        init_lora_weights="gaussian",
        target_modules=_targets(letters, names, feed_forward),
    )


def _targets(letters: str, names: Mapping[str, str], feed_forward: bool) -> list[str]:
    unknown = [letter for letter in letters if letter not in names]
    if unknown or not (letters or feed_forward):
        raise UserError(
            f"--attn_update_unet {letters!r}: give some of the letters k, q, v, o, such as kqvo."
        )
    return [names[letter] for letter in dict.fromkeys(letters)] + list(FEED_FORWARD) * feed_forward


def adapted_layers(
    configs: Mapping[str, PeftConfig], models: Mapping[str, nn.Module]
) -> list[AdaptedLayer]:
    """Every layer that `configs` would adapt in `models` (on any device, "meta" included).

    Raises:
        UserError: factors that do not divide a layer; a config that matches no layer.
    """
    layers = []
    for component, config in configs.items():
        targets = target_layers(config, models[component])
        shapes = [(n, m.out_features, m.in_features) for n, m in targets.items()]
        if not shapes:
            raise UserError(f"No layer of {component} matches {config.target_modules}.")
        if isinstance(config, KronAConfig):
            try:
                check_factors(config, shapes)
            except ValueError as error:
                raise UserError(str(error)) from error
        for name, out_features, in_features in shapes:
            factors, count = _size(config, name, out_features, in_features)
            layers.append(AdaptedLayer(component, name, out_features, in_features, factors, count))
    return layers


def _size(config: PeftConfig, name: str, out: int, inside: int) -> tuple[str, int]:
    if isinstance(config, KronAConfig):
        a1, a2 = factors_of(config, name)
        b1, b2 = out // a1, inside // a2
        terms = f" x{config.terms}" if config.terms > 1 else ""
        return f"{a1}x{a2} (x) {b1}x{b2}{terms}", config.terms * (a1 * a2 + b1 * b2)
    return f"rank {config.r}", config.r * (out + inside)


def add_adapters(
    configs: Mapping[str, PeftConfig], models: Mapping[str, nn.Module], adapter_name: str
) -> list[torch.nn.Parameter]:
    """Put the adapters on their models, everything else frozen; returns what is trained."""
    trained = []
    for component, config in configs.items():
        models[component].requires_grad_(False)
        models[component].add_adapter(config, adapter_name)
        trained += [p for p in models[component].parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # PEFT's LoRA takes the base's dtype
    return trained
