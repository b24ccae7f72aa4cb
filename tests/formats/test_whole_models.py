"""Fine-tuned whole models: nothing that they changed is lost without a word, in either layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.formats.report import Options


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def models(request, tmp_path_factory) -> dict[str, Path]:
    """A base and a fine-tune of every part of it, each as a folder and as one file."""
    folder = tmp_path_factory.mktemp(request.param)
    base = peers.save_base(folder / "base", request.param)
    pipe = DiffusionPipeline.from_pretrained(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
            for parameter in getattr(getattr(pipe, part, None), "parameters", list)():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        pipe.unet.conv_in.bias += 2
    pipe.save_pretrained(folder / "tuned")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    nothing = {f"{stem}.lokr_w1": torch.zeros(2, 2), f"{stem}.lokr_w2": torch.zeros(64, 64)}
    save_file(nothing, folder / "zero.safetensors")
    for name in ("base", "tuned"):
        convert(
            folder / "zero.safetensors", folder / f"{name}.safetensors", "merged",
            base=folder / name,
        )  # fmt: skip
    return {
        "base": base,
        "tuned": folder / "tuned",
        "base file": folder / "base.safetensors",
        "tuned file": folder / "tuned.safetensors",
    }


LAYOUTS = [(t, b) for t in ("tuned", "tuned file") for b in ("base", "base file")]


@pytest.mark.parametrize(("tuned", "base"), LAYOUTS)
def test_what_an_adapter_cannot_hold_is_noted(tmp_path: Path, models, tuned, base) -> None:
    report = convert(
        models[tuned], tmp_path / "o.safetensors", "lora", base=models[base],
        options=Options(rank=2),
    )  # fmt: skip
    (note,) = [n for n in report.notes if "outside the attention projections" in n]
    assert "conv_in.bias" in note or "input_blocks.0.0.bias" in note
    assert "--to merged keeps them" in note


@pytest.mark.parametrize(("tuned", "base"), LAYOUTS)
def test_merged_keeps_everything(tmp_path: Path, models, tuned, base) -> None:
    convert(models[tuned], tmp_path / "m.safetensors", "merged", base=models[base])
    made, want = load_file(tmp_path / "m.safetensors"), load_file(models["tuned file"])
    assert made.keys() == want.keys()
    for key, tensor in want.items():
        torch.testing.assert_close(made[key], tensor, atol=1e-5, rtol=1e-5, msg=key)


def test_half_of_a_change(tmp_path: Path, models) -> None:
    convert(models["tuned"], tmp_path / "m.safetensors", "merged", base=models["base"], weight=0.5)
    made, one, other = (
        load_file(path)
        for path in (tmp_path / "m.safetensors", models["base file"], models["tuned file"])
    )
    for key, tensor in made.items():
        want = (one[key] + other[key]) / 2
        torch.testing.assert_close(tensor, want, atol=1e-5, rtol=1e-5, msg=key)


def test_what_does_not_fit_the_base_is_refused(tmp_path: Path, models) -> None:
    tensors = load_file(models["tuned file"]) | {"model.diffusion_model.extra": torch.ones(3)}
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match=r"1 tensors that the base lacks.*extra.*--skip"):
        convert(tmp_path / "t.safetensors", tmp_path / "m.safetensors", "merged",
                base=models["base file"])  # fmt: skip
    report = convert(
        tmp_path / "t.safetensors", tmp_path / "m.safetensors", "merged",
        base=models["base file"], options=Options(skip_unsupported=True),
    )  # fmt: skip
    assert any("model.diffusion_model.extra" in note for note in report.notes)


def test_a_layer_under_another_name_than_the_layouts_is_refused(tmp_path: Path) -> None:
    layer, unet = "transformer_blocks.0.attn1.to_q.weight", "model.diffusion_model."
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file({f"{unet}middle_block.1.{layer}": torch.zeros(8, 8)}, base)
    save_file({f"{unet}mid_block.attentions.0.{layer}": torch.ones(8, 8)}, tuned)
    with pytest.raises(UserError, match=r"tuned.* has no layer unet\.mid_block\.attentions\.0"):
        convert(tuned, tmp_path / "lora.safetensors", "lora", base=base)


def test_one_file_of_a_family_that_the_base_does_not_show(tmp_path: Path, models) -> None:
    shutil.copytree(models["base"], tmp_path / "base")
    config = json.loads((tmp_path / "base/unet/config.json").read_text())
    config["_class_name"] = "UNet2DModel"
    (tmp_path / "base/unet/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"base does not show which family .* add --family sd1"):
        convert(models["tuned"], tmp_path / "m.safetensors", "merged", base=tmp_path / "base")


def test_rounding_is_not_a_change(tmp_path: Path, models) -> None:
    """A half-precision copy of a base whose attention alone was tuned has nothing to note."""
    tensors = {k: t.half() for k, t in load_file(models["base file"]).items()}
    key = next(k for k in tensors if k.endswith("attn1.to_q.weight"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, tmp_path / "t.safetensors")
    report = convert(
        tmp_path / "t.safetensors", tmp_path / "o.safetensors", "lora", base=models["base"],
        options=Options(rank=2),
    )  # fmt: skip
    assert not report.notes
