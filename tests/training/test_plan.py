"""What a dry run prints from configs is what the built models and the libraries say."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from diffusekrona import KronAConfig
from diffusekrona.adapters.layers import UNET_LETTERS
from diffusekrona.bases import backbones, layer_shapes
from diffusekrona.bases.layer_shapes import linear_layers
from diffusekrona.bases.published import SD15_UNET, SD21_UNET, SDXL_UNET
from diffusekrona.common.errors import UserError
from diffusekrona.krona import target_layers
from diffusekrona.training.lr_schedule import make_lr_scheduler, rate_factor
from diffusekrona.training.settings import OptimisationSettings, Schedule

UNET = "UNet2DConditionModel"
ALL = (*UNET_LETTERS.values(), "ff.net.0.proj", "ff.net.2")
SMALL = {
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
}
DESCRIBED = {
    "sd15": SD15_UNET,
    "sd21": SD21_UNET,
    "sdxl": SDXL_UNET,
    "defaults": {},
    "small": SMALL,
    "layers": {**SMALL, "layers_per_block": (1, 3), "transformer_layers_per_block": (2, 1)},
    "text": {**SMALL, "cross_attention_dim": (16, 40), "attention_head_dim": (4, 5)},
    "uneven": {**SMALL, "attention_head_dim": 7},  # 7 heads of 32 // 7: 28 wide
    "other parts": {**SMALL, "in_channels": 9, "time_cond_proj_dim": 8, "sample_size": 16},
}
OTHERS = {
    "only cross": {**SMALL, "only_cross_attention": True},
    "simple": {**SMALL, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    "attention blocks": {**SMALL, "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")},
    "gated": {**SMALL, "attention_type": "gated"},
    "dual": {**SMALL, "dual_cross_attention": True},
    "hidden": {**SMALL, "encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"},
}


def adapted_in_model(kind: str, config: dict, targets: tuple[str, ...]) -> list:
    """What PEFT itself would adapt in the built model."""
    model = backbones.build_empty(kind, config)
    found = target_layers(KronAConfig(target_modules=list(targets)), model)
    return [(name, (layer.out_features, layer.in_features)) for name, layer in found.items()]


def adapted_in_config(kind: str, config: dict, targets: tuple[str, ...]) -> list:
    shapes = linear_layers(kind, config)
    ends = tuple(f".{target}" for target in targets)
    return [(name, shape) for name, shape in shapes.items() if name.endswith(ends)]


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_unets_layers_are_those_of_the_built_model(name, monkeypatch) -> None:
    config = DESCRIBED[name]
    built = adapted_in_model(UNET, config, ALL)
    monkeypatch.setattr(layer_shapes, "_layers_of_model", None)  # it is read off the config alone
    assert adapted_in_config(UNET, config, ALL) == built and built


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_unet_is_built_and_looked_at(name) -> None:
    config = OTHERS[name]
    assert layer_shapes.unet_layers(config) is None
    built = adapted_in_model(UNET, config, ALL)
    assert adapted_in_config(UNET, config, ALL) == built and built


def test_keys_that_are_not_known_are_not_guessed_about() -> None:
    assert layer_shapes.unet_layers({**SMALL, "_class_name": UNET}) is not None
    assert layer_shapes.unet_layers({**SMALL, "attention_of_tomorrow": 1}) is None
    assert layer_shapes.unet_layers({**SMALL, "block_out_channels": (32, 64, 64)}) is None


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("given", [{}, {"hidden_size": 48, "num_hidden_layers": 3}])
def test_a_text_encoders_layers_are_those_of_the_built_model(kind, given, monkeypatch) -> None:
    config = {"model_type": "clip_text_model", "num_attention_heads": 4, **given}
    targets = ("k_proj", "q_proj", "v_proj", "out_proj", "fc1", "fc2")
    built = adapted_in_model(kind, config, targets)
    monkeypatch.setattr(layer_shapes, "_layers_of_model", None)
    assert adapted_in_config(kind, config, targets) == built and built


def test_bundled_and_saved_models_are_described(tiny_sdxl: Path, monkeypatch) -> None:
    monkeypatch.setattr(layer_shapes, "_layers_of_model", None)
    for base in (*map(backbones.resolve_base, backbones.bundled_models()), str(tiny_sdxl)):
        assert linear_layers(UNET, backbones.read_unet_config(base))
        part = backbones.read_part_config(base, "text_encoder")
        assert linear_layers("CLIPTextModel", part)


def test_a_vaes_config_is_complete() -> None:
    from diffusers import AutoencoderKL

    given = backbones.read_vae_config(backbones.resolve_base("pocket"))
    loaded = backbones.load_vae(backbones.resolve_base("pocket")).config
    for key, value in given.items():
        assert loaded[key] == value or list(loaded[key]) == value or key.startswith("_"), key
    assert AutoencoderKL().config.scaling_factor == 0.18215  # what old configs leave to diffusers


def schedule(name: str, warmup: int = 0, **more) -> OptimisationSettings:
    settings = {"lr_num_cycles": 3, "lr_power": 1.7, "lr_step_rules": "1:5,0.3:11,0.01", **more}
    return OptimisationSettings(lr_scheduler=name, lr_warmup_steps=warmup, **settings)


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_are_bit_for_bit_those_of_diffusers(name, warmup) -> None:
    optimisation, rate, steps = schedule(name, warmup), 6e-4, 23
    theirs, ours = (torch.optim.SGD([torch.zeros(1)], lr=rate) for _ in range(2))
    reference = get_scheduler(
        name,
        theirs,
        step_rules=optimisation.lr_step_rules,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=optimisation.lr_num_cycles,
        power=optimisation.lr_power,
    )
    scheduler = make_lr_scheduler(optimisation, ours, steps)
    factor = rate_factor(optimisation, steps, rate)
    for step in range(steps + 3):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == rate * factor(step)
        for each in (theirs, reference, ours, scheduler):
            each.step()


def test_schedules_that_cannot_be() -> None:
    with pytest.raises(UserError, match="--lr_step_rules '1:x,2'"):
        rate_factor(schedule("piecewise_constant", lr_step_rules="1:x,2"), 10, 1e-3)
    with pytest.raises(UserError, match="start above it"):
        rate_factor(schedule("polynomial"), 10, 1e-8)
