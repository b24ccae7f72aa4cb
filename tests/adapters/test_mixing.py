"""Adapters that are merged for now come off again bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import Adapter
from diffusekrona.adapters.mixing import WeightedAdapter, merge_for_now, reading_options

NAMES = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def unet(tiny_sd1: Path) -> UNet2DConditionModel:
    """With both methods on its attentions, KronA at a weight of its own."""
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet").requires_grad_(False)
    unet.add_adapter(KronAConfig(a1=4, a2=8, target_modules=NAMES), "one")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "two")
    unet.set_adapter(["one", "two"])
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "krona_b" in name or "lora_B" in name:
            parameter.data.normal_(std=0.1)
    for module in unet.modules():
        if hasattr(module, "krona_a"):
            module.set_scale("one", 0.7)
    return unet


def draw(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    latents = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 7, width, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor(10), text).sample


def test_a_merge_is_undone_bit_for_bit(unet: UNet2DConditionModel) -> None:
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    live = draw(unet)
    undo = merge_for_now(unet)
    merged = draw(unet)
    assert all(layer.merged for layer in unet.modules() if hasattr(layer, "merged_adapters"))
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-5)
    undo()
    assert torch.equal(draw(unet), live)
    after = unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_merge_that_fails_leaves_nothing_behind(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = draw(unet)
    layers = [module for module in unet.modules() if hasattr(module, "krona_a")]

    def fail(**_options: object) -> None:
        raise ValueError("a quantised weight")

    monkeypatch.setattr(layers[0], "merge", fail)  # the last one to be merged
    with pytest.raises(ValueError, match="quantised"):
        merge_for_now(unet)
    assert torch.equal(draw(unet), live)
    assert isinstance(layers[0].get_base_layer(), nn.Linear)


@pytest.mark.parametrize("order", [("krona", "lora"), ("lora", "krona"), ("krona",)])
def test_fused_methods_come_off_again_whatever_their_order(
    tiny_sd1: Path, order: tuple[str, ...]
) -> None:
    """diffusers unfuses in the order in which it fused: first on, first off."""
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet").requires_grad_(False)
    plain = draw(unet)
    configs = {
        "krona": KronAConfig(a1=4, a2=8, target_modules=NAMES, init_weights="both"),
        "lora": LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False),
    }
    for name in order:
        unet.add_adapter(configs[name], name)
    unet.set_adapter(list(order))
    live = draw(unet)
    unet.fuse_lora()
    torch.testing.assert_close(draw(unet), live, rtol=1e-4, atol=1e-5)
    for module in unet.modules():  # what is subtracted is what was added
        if hasattr(module, "krona_a"):
            module.set_scale("krona", 0.3)
    unet.unfuse_lora()
    unet.disable_adapters()
    torch.testing.assert_close(draw(unet), plain, rtol=1e-5, atol=1e-5)
    assert order != ("krona",) or torch.equal(draw(unet), plain)


@pytest.mark.parametrize(("configs", "used"), [("pocket", True), (".", True), ("/gone", False)])
def test_a_single_file_is_read_with_the_configs_of_training(configs: str, used: bool) -> None:
    """A bundled model or a folder, where it is still there."""
    trained = Adapter({}, {}, {"single_file_config": configs})
    found = reading_options([WeightedAdapter(Path("a.safetensors"), 1, trained)])
    assert found == ({"single_file_config": configs} if used else {})
