"""Adapter dropout and the norm limit, on layers of every method."""

from __future__ import annotations

import pytest
import torch
from peft import LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import nn

from diffusekrona.adapters.method import Method
from diffusekrona.adapters.methods import METHODS, method_of
from diffusekrona.bases.quantisation import quantise
from diffusekrona.krona import KronAConfig
from diffusekrona.training.regularisation import Regulariser

CONFIGS = {
    "krona": KronAConfig(a1=2, a2=4, target_modules=["0", "1"], scale=0.5),
    "terms": KronAConfig(a1=2, a2=4, target_modules=["0", "1"], terms=3),
    "lora": LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"]),
    "lokr": LoKrConfig(r=3, alpha=6, target_modules=["0", "1"]),
}


@pytest.fixture(params=CONFIGS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    made = inject_adapter_in_model(CONFIGS[request.param], plain, "default")
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.normal_()
    return made


@pytest.fixture
def method(request, model: nn.Module) -> Method:
    return method_of(CONFIGS[request.node.callspec.params["model"]])


def test_the_norm_is_that_of_the_matrix(model: nn.Module, method: Method) -> None:
    for layer in model:
        expected = layer.get_delta_weight("default").norm()
        torch.testing.assert_close(method.delta_norm(layer, "default"), expected)


def test_norms_above_the_limit_are_brought_down_to_it(model: nn.Module, method) -> None:
    with torch.no_grad():
        for p in model[1].parameters():
            if p.requires_grad:
                p.mul_(1e-3)
    small = model[1].get_delta_weight("default").clone()
    direction = model[0].get_delta_weight("default").clone()
    Regulariser({"unet": model}, "default", 0.0, 0.1, seed=0, method=method).limit_norms()
    assert torch.equal(model[1].get_delta_weight("default"), small)
    after, base = model[0].get_delta_weight("default"), model[0].get_base_layer().weight
    assert (after.norm() / base.norm()).item() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(after / after.norm(), direction / direction.norm())


def test_dropped_adapters_leave_the_base_and_the_rest_counts_more(model: nn.Module, method) -> None:
    regulariser = Regulariser({"unet": model}, "default", 0.25, None, seed=0, method=method)
    scales = [layer.scaling["default"] for layer in model]
    seen, dropped = set(), 0
    for number in range(400):
        with regulariser.dropping(number):
            now = [layer.scaling["default"] for layer in model]
        seen |= {value / scale for value, scale in zip(now, scales, strict=True)}
        dropped += now.count(0.0)
        assert [layer.scaling["default"] for layer in model] == scales
    assert sorted(seen) == pytest.approx([0, 1 / 0.75])
    assert dropped / 800 == pytest.approx(0.25, abs=0.05)
    with regulariser.dropping(3):
        one = [layer.scaling["default"] for layer in model]
    with regulariser.dropping(3):
        assert [layer.scaling["default"] for layer in model] == one


def test_without_either_nothing_is_touched(model: nn.Module, method) -> None:
    regulariser = Regulariser({"unet": model}, "default", 0.0, None, seed=0, method=method)
    before = [p.clone() for p in model.parameters()]
    with regulariser.dropping(1):
        regulariser.limit_norms()
    assert regulariser.layers == []
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_has_the_limit_of_its_own_weights(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    parts = nn.ModuleDict({"q": nn.Linear(64, 64), "k": nn.Linear(64, 64)})
    block = nn.Module()
    block.transformer_blocks = nn.ModuleList([parts])
    weights = [layer.weight.detach().clone() for layer in parts.values()]
    model = quantise(block, kind).to("cpu")
    config = KronAConfig(a1=4, a2=8, target_modules=["q", "k"])
    model = inject_adapter_in_model(config, model, "default")
    regulariser = Regulariser({"unet": model}, "default", 0.0, 0.1, 0, METHODS["krona"])
    assert len(regulariser.most) == 2
    for most, weight in zip(regulariser.most, weights, strict=True):
        assert most.item() == pytest.approx(0.1 * weight.norm().item(), rel=0.02)
