"""What keeps factors from overfitting beside the loss: dropped adapters, limited norms."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from ..adapters.groups import layers_with
from ..adapters.method import Method
from ..common.errors import UserError
from ..common.seeds import seed_for


class Regulariser:
    """Adapter dropout and norm limit of a run, for any method whose layers have a `scaling`, and
    whose delta W is a product of their factors."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        adapter_name: str,
        dropout: float,
        limit: float | None,
        seed: int,
        method: Method,
    ) -> None:
        """
        Args:
            models: component name to the model that carries the adapter, before it is wrapped.
            dropout: probability with which a layer's adapter is left out.
            limit: of ||delta W|| / ||W||, Frobenius norms; None for none.
            method: of the adapter.

        Raises:
            UserError: dropout of a method whose layers have no weight.
        """
        self.name, self.dropout, self.limit, self.seed = adapter_name, dropout, limit, seed
        self.method = method
        if dropout and method.delta is None:
            raise UserError(
                f"--adapter_dropout does not apply to {method.title}, whose adapters cannot be "
                "scaled: leave it out."
            )
        active = bool(dropout or limit)
        self.layers: list[Any] = []
        if active:
            self.layers = [layer for _, _, layer in layers_with(models, adapter_name)]
        self.most: list[torch.Tensor] = []
        if limit is None:
            return
        for layer in self.layers:
            weight = dequantize_module_weight(layer.get_base_layer())
            self.most.append(weight.detach().float().norm() * limit)

    @contextmanager
    def dropping(self, number: int) -> Generator[None]:
        """Leave adapters out of micro-step `number`, forward and backward; those that stay count
        1 / (1 - dropout) times, so that the expectation is what inference has. Which ones is a
        function of seed and number: the same in every process."""
        if not self.dropout:
            yield
            return
        rng = random.Random(seed_for(self.seed, "dropout", number))
        before = [layer.scaling[self.name] for layer in self.layers]
        for layer, scale in zip(self.layers, before, strict=True):
            kept = rng.random() >= self.dropout
            layer.scaling[self.name] = scale / (1 - self.dropout) if kept else 0.0
        try:
            yield
        finally:
            for layer, scale in zip(self.layers, before, strict=True):
                layer.scaling[self.name] = scale

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Shrink all factors of each layer whose delta W has grown past the limit."""
        for layer, most in zip(self.layers, self.most, strict=False):
            ratio = most / self.method.delta_norm(layer, self.name).clamp(min=1e-30)
            factors = _factors(layer, self.name)
            shrink = ratio.clamp(max=1) ** (1 / len(factors))
            for factor in factors:
                factor.mul_(shrink)


def _factors(layer: Any, adapter_name: str) -> list[torch.Tensor]:
    """What delta W is a product of, in PEFT's order: A before B."""
    held = (getattr(layer, name) for name in layer.adapter_layer_names)
    own = (each[adapter_name] for each in held if adapter_name in each)
    return [getattr(each, "weight", each) for each in own]
