"""Deltas that depend on the base's weight, worked out once the base is known: DoRA, GLoRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..adapters.deltas import Delta, DenseDelta
from ..common.errors import UserError

Load = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class NeedsBase:
    """What a layer's tensors make of its weight, where that depends on the base's weight.

    Attributes:
        kind: "DoRA" or "GLoRA".
        shape: (out, in) of the weight, as far as the tensors show it.
        make: from a function that loads the base's weight (out, in), fp32, to the delta.
    """

    kind: str
    shape: tuple[int, int]
    make: Callable[[Load], Delta]
    kernel: tuple[int, ...] = ()


def weight_decomposed(
    stem: str, delta: Delta, magnitude: torch.Tensor, where: Path | str
) -> NeedsBase:
    """m * (W + delta W) / ||W + delta W|| as a change of W; the norm per row or per column."""
    rows, columns = delta.shape
    area = math.prod(delta.kernel)
    per_row = magnitude.shape[0] == rows == magnitude.numel()
    if not per_row and (magnitude.shape[0] != 1 or magnitude.numel() * area != columns):
        raise UserError(
            f"{where}: the DoRA magnitude of {stem}, {tuple(magnitude.shape)}, fits no "
            f"{rows}x{columns} weight."
        )
    change = partial(_rescaled, delta, magnitude.flatten(), per_row)

    def make(load: Load) -> Delta:
        return DenseDelta(lambda: change(load()), delta.shape, delta.kernel)

    return NeedsBase("DoRA", delta.shape, make, delta.kernel)


def _rescaled(
    delta: Delta, magnitude: torch.Tensor, per_row: bool, weight: torch.Tensor
) -> torch.Tensor:
    moved = (weight + delta.weight()).double()
    if per_row:
        scaled = moved * (magnitude.double() / moved.norm(dim=1))[:, None]
    else:
        channels = moved.view(len(moved), len(magnitude), -1)  # (out, in, kernel)
        norms = channels.transpose(0, 1).flatten(1).norm(dim=1)
        scaled = (channels * (magnitude.double() / norms)[None, :, None]).view_as(moved)
    return (scaled - weight.double()).float()
