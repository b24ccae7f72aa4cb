"""Norms, singular values and ranks of adapted layers, against the dense delta W."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from peft import LoraConfig

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import collect_adapter
from diffusekrona.inspection.facts import effective_rank, facts_of, rank_holding, shares

CONFIGS = {
    "krona": KronAConfig(a1=4, a2=16, scale=0.5),
    "terms": KronAConfig(a1=4, a2=16, terms=2, output_order="interleaved"),
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_numbers_are_those_of_the_dense_change(kind: str) -> None:
    unet = tiny_models.unet()
    unet.add_adapter(CONFIGS[kind])
    tiny_models.random_factors(unet)
    facts = facts_of(collect_adapter(unet), kind)
    assert len({layer.name for layer in facts.layers}) == len(facts.layers) > 0
    assert facts.parameters == sum(p.numel() for p in unet.parameters() if p.requires_grad)
    total = 0.0
    for layer in facts.layers:
        dense = unet.get_submodule(layer.name).get_delta_weight("default").detach().double()
        singular = torch.linalg.svdvals(dense)
        size = min(len(singular), len(layer.singular))
        assert layer.shape == tuple(dense.shape)
        assert layer.norm == pytest.approx(dense.norm().item(), rel=1e-5)
        scale = singular[0].item()
        torch.testing.assert_close(
            layer.singular[:size], singular[:size], rtol=0, atol=1e-5 * scale
        )
        assert torch.linalg.matrix_rank(dense, rtol=1e-5) <= layer.rank_limit
        total += dense.square().sum().item()
    assert facts.norm**2 == pytest.approx(total, rel=1e-5)


def test_layers_come_in_the_order_of_the_blocks() -> None:
    unet = tiny_models.unet()
    unet.add_adapter(CONFIGS["krona"])
    tiny_models.random_factors(unet)
    layers = facts_of(collect_adapter(unet), "x").layers
    kinds = [layer.place.block.partition(".")[0] for layer in layers]
    order = ["down", "mid", "up"]
    assert kinds == sorted(kinds, key=order.index) and set(kinds) == set(order)
    for kind in ("blocks", "projections", "attention"):
        assert sum(shares(layers, kind).values()) == pytest.approx(1.0)


def test_effective_rank_counts_equal_singular_values() -> None:
    assert effective_rank(torch.zeros(3)) == 0.0
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    uneven = effective_rank(torch.tensor([10.0, 1.0]))
    assert 1.0 < uneven < 2.0


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.9, 1), (0.95, 2), (1.0, 3)])
def test_rank_that_holds_a_share_of_the_squared_norm(share: float, rank: int) -> None:
    assert rank_holding(torch.tensor([3.0, 0.9, 0.3]), share) == rank
    assert rank_holding(torch.zeros(3), share) == 0
