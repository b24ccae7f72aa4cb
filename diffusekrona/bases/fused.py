"""Linear layers that hold several projections in one weight, split into a layer for each.

A split layer gives the same output and has the same weights, as views or slices; its parts are
layers of their own, so an adapter has a delta for each, and letters keep their meaning.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn

from ..common.errors import UserError


class RowSplit(nn.Module):
    """A linear layer as parts that make consecutive slices of its output."""

    def __init__(self, linear: nn.Linear, sizes: Mapping[str, int]) -> None:
        super().__init__()
        weights = linear.weight.split([*sizes.values()], dim=0)
        for name, weight in zip(sizes, weights, strict=True):
            self.add_module(name, _linear(weight))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return torch.cat([part(states) for part in self.children()], dim=-1)


class ColumnSplit(nn.Module):
    """A linear layer as parts that read consecutive slices of its input and are added."""

    def __init__(self, linear: nn.Linear, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = [*sizes.values()]
        weights = linear.weight.split(self.sizes, dim=1)
        for name, weight in zip(sizes, weights, strict=True):
            self.add_module(name, _linear(weight.contiguous()))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        slices = states.split(self.sizes, dim=-1)
        outputs = [part(x) for part, x in zip(self.children(), slices, strict=True)]
        return functools.reduce(torch.add, outputs)


def plain_linear(layer: nn.Module, name: str) -> nn.Linear:
    """A layer that can be split: linear, without bias.

    Raises:
        UserError: it is quantised, or carries an adapter already; it is named.
    """
    biased = "bias" in dict(layer.named_parameters())
    if not isinstance(layer, nn.Linear) or type(layer) is not nn.Linear or biased:
        raise UserError(
            f"Layer {name} of the base holds several projections and cannot be split as "
            f"{type(layer).__name__}: add the adapter before quantising it or loading others."
        )
    return layer


def _linear(weight: torch.Tensor) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    return layer
