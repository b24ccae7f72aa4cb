"""How few singular terms of delta W do: a Kronecker product's are sigma_i(A) sigma_j(B).

With A = sum_i sigma_i u_i v_i^T and B likewise, A (x) B is the sum over (i, j) of sigma_i(A)
sigma_j(B) (u_i (x) u_j) (v_i (x) v_j)^T, which is its singular value decomposition. Keeping the
largest terms gives the nearest matrix of that rank: a LoRA, whose rank differs from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftConfig

from ..adapters.deltas import truncate
from ..adapters.file import Adapter
from ..adapters.lora_method import lora_of
from ..adapters.methods import method_of
from .facts import Facts, rank_holding


@dataclass(frozen=True)
class KeptTerms:
    """An adapter reduced to its largest terms.

    Attributes:
        terms: kept in all layers; of: how many there are.
        adapter: a LoRA of these terms.
    """

    terms: int
    of: int
    adapter: Adapter


def keep_terms(adapter: Adapter, facts: Facts, share: float) -> KeptTerms:
    """The least terms of every layer that hold `share` of its ||delta W||^2.

    Args:
        facts: of the same adapter.
    """
    ranks = {(x.component, x.name): max(1, rank_holding(x.singular, share)) for x in facts.layers}
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    for component, config in adapter.configs.items():
        layers = adapter.method.by_layer(adapter.component_tensors(component))
        deltas = {n: method_of(config).delta_of(own, config, n) for n, own in layers.items()}
        configs[component], factors = lora_of(
            {name: truncate(delta, ranks[component, name]) for name, delta in deltas.items()}
        )
        tensors |= {f"{component}.{key}": tensor for key, tensor in factors.items()}
    kept = Adapter(tensors, configs, {**adapter.metadata, "method": "lora"})
    of = sum(int((x.singular > 0).sum()) for x in facts.layers)
    return KeptTerms(sum(ranks.values()), of, kept)
