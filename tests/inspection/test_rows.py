"""A row of A is a block of rows of delta W, switched on and off in every layer."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from peft import LoKrConfig, LoraConfig

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import collect_adapter
from diffusekrona.inspection.facts import facts_of
from diffusekrona.inspection.rows import MOST, band_count, band_shares, weighted_rows


def adapted(config):
    unet = tiny_models.unet()
    unet.add_adapter(config)
    tiny_models.random_factors(unet)
    return unet, facts_of(collect_adapter(unet), "one")


def deltas(unet, facts) -> list[torch.Tensor]:
    layers = (unet.get_submodule(one.name) for one in facts.layers)
    return [layer.get_delta_weight("default").detach().double() for layer in layers]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("order", ["kron", "interleaved"])
def test_a_row_is_a_block_of_rows_of_the_delta(terms: int, order: str) -> None:
    unet, facts = adapted(KronAConfig(a1=4, a2=16, terms=terms, output_order=order, scale=0.5))
    assert band_count(facts) == 4
    whole = deltas(unet, facts)
    with weighted_rows(unet, "default", [1, 1, 0, 1]):
        without = deltas(unet, facts)
    assert all(map(torch.equal, deltas(unet, facts), whole))
    lost = 0.0
    for before, after in zip(whole, without, strict=True):
        rows = torch.arange(len(before))
        block = rows * 4 // len(before) == 2 if order == "kron" else rows % 4 == 2
        assert not after[block].any()
        assert torch.equal(after[~block], before[~block])
        lost += before[block].square().sum().item()
    total = sum(one.square().sum().item() for one in whole)
    shares = band_shares(facts, 4)
    assert sum(shares) == pytest.approx(1)
    assert shares[2] == pytest.approx(lost / total, rel=1e-5)


def test_many_rows_are_drawn_in_bands_and_other_methods_have_none() -> None:
    unet, facts = adapted(KronAConfig(a1=64, a2=16, factor_pattern={"to_k": (16, 4)}))
    assert band_count(facts) == MOST == 8
    whole = deltas(unet, facts)
    with weighted_rows(unet, "default", [0] * 7 + [1]):
        for before, after in zip(whole, deltas(unet, facts), strict=True):
            last = len(before) * 7 // 8
            assert not after[:last].any() and torch.equal(after[last:], before[last:])
    for config in (LoraConfig, LoKrConfig):
        _, facts = adapted(config(r=4, target_modules=["to_q"]))
        assert band_count(facts) == 0 and band_shares(facts, 0) == []
    _, facts = adapted(KronAConfig(a1=1, a2=16))
    assert band_count(facts) == 0
