"""The layers and counts of a plan are those of the adapter on the built model."""

from __future__ import annotations

import pytest
import tiny_models
from peft import LoraConfig

from diffusekrona import KronAConfig
from diffusekrona.adapters.layers import adapted_layers, matching, tensor_shapes
from diffusekrona.adapters.method import Targets
from diffusekrona.adapters.methods import METHODS
from diffusekrona.adapters.settings import AdapterSettings
from diffusekrona.bases.meta import linear_layers
from diffusekrona.common.errors import UserError
from diffusekrona.krona.model import factors_of

PATTERN = {"to_k": (2, 16), "to_out.0": (8, 8)}


@pytest.mark.parametrize(
    "config",
    [
        KronAConfig(a1=4, a2=8, factor_pattern=PATTERN, terms=2),
        KronAConfig(a1=4, a2=8),
        LoraConfig(r=3, target_modules=["to_k", "to_v", "ff.net.0.proj", "ff.net.2"]),
    ],
    ids=["terms", "krona", "lora"],
)
def test_counts_are_those_of_the_adapted_model(config) -> None:
    model = tiny_models.unet("sd1")
    counted = adapted_layers({"unet": config}, {"unet": linear_layers(model)})
    model.add_adapter(config, "default")
    trained = {n: p.numel() for n, p in model.named_parameters() if ".default" in n}
    assert sum(layer.parameters for layer in counted) == sum(trained.values())
    for layer in counted:
        own = [count for name, count in trained.items() if name.startswith(f"{layer.name}.")]
        assert sorted(layer.tensors) == sorted(own)


@pytest.mark.parametrize(
    ("method", "multiplications"),
    [("krona", 4 * 8 * 8 + 4 * 8 * 16), ("lora", 2 * (64 + 64)), ("lokr", None)],
)
def test_multiplications_of_a_layer(method: str, multiplications: int | None) -> None:
    """Of 4x8 (x) 16x8: A first, which is no more than B first; LoKr computes delta W."""
    settings = AdapterSettings(a1=4, a2=8, rank=2)
    config = METHODS[method].make_config(settings, Targets(("to_q",), {"q": ("to_q",)}, "unet"))
    (layer,) = adapted_layers({"unet": config}, {"unet": {"a.to_q": (64, 64)}})
    assert layer.multiplications == multiplications


def test_factors_are_those_of_the_config() -> None:
    config = KronAConfig(a1=4, a2=8, factor_pattern=PATTERN, terms=2)
    layers = linear_layers(tiny_models.unet("sd1"))
    shapes = tensor_shapes(config, layers)
    assert len(shapes) == 32
    for name, own in shapes.items():
        assert own["krona_a"] == (2, *factors_of(config, name))
    words = {layer.factors for layer in adapted_layers({"unet": config}, {"unet": layers})}
    assert "4x8 (x) 16x8 x2" in words and "8x8 (x) 8x8 x2" in words


def test_layers_that_do_not_fit_or_do_not_exist() -> None:
    layers = {"a.to_q": (64, 64), "b.to_q": (60, 64)}
    with pytest.raises(UserError, match=r"do not fit layer 'b\.to_q'.*Nearest pairs"):
        tensor_shapes(KronAConfig(a1=8, a2=8), layers)
    with pytest.raises(UserError, match="No layer matches to_z"):
        tensor_shapes(LoraConfig(target_modules=["to_z"]), layers)
    assert list(matching(("b.to_q", "z"), layers)) == ["b.to_q"]
    assert list(matching(("q",), layers)) == []
