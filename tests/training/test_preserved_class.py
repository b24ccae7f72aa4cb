"""Preservation of the class without class pictures: the base's own prediction is the target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import nn

from diffusekrona.adapters.groups import without_adapters
from diffusekrona.common.errors import UserError
from diffusekrona.krona import KronAConfig
from diffusekrona.train_dreambooth import main
from diffusekrona.training import batch as batch_module
from diffusekrona.training.settings import parse_settings


def flags(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog", "--preserve_class", "--class_prompt", "a dog",
        "--output_dir", str(out), "--a2", "16", "--max_train_steps", "4", "--resolution", "16",
        "--train_batch_size", "2", "--learning_rate", "0.05", "--report_to", "none", "--cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (folder := tmp_path / "pictures").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        mask = Image.new("L", (16, 16))
        ImageDraw.Draw(mask).rectangle((0, 0, 7, 15), fill=255)
        mask.save(folder / f"{colour}.mask.png")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        KronAConfig(a1=2, a2=4, target_modules=["0", "1"]),
        LoraConfig(r=3, target_modules=["0", "1"]),
        LoraConfig(r=3, target_modules=["0", "1"], use_dora=True),
    ],
)
def test_without_adapters_there_is_the_base_and_afterwards_all_is_as_it_was(config) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    x = torch.randn(3, 16)
    expected = plain(x)
    model = inject_adapter_in_model(config, plain, "default")
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    trained = [p.requires_grad for p in model.parameters()]
    adapted = model(x)
    with without_adapters([model]):
        assert torch.equal(model(x), expected)
        assert [p.requires_grad for p in model.parameters()] == trained
    assert torch.equal(model(x), adapted) and not torch.allclose(adapted, expected)


@pytest.mark.parametrize("trained_text", [False, True])
def test_the_target_is_the_bases_prediction_on_the_class_prompt(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch, trained_text: bool
) -> None:
    seen = []
    real_loss, real_batch = batch_module.batch_loss, batch_module.make_batch

    def loss(settings, objective, prediction, *others, preserved, mask, **more):
        seen.append((prediction.detach().clone(), preserved.clone(), mask))
        return real_loss(
            settings, objective, prediction, *others, preserved=preserved, mask=mask, **more
        )

    def make(*arguments):
        made = real_batch(*arguments)
        assert made["captions"] == ["a sks dog"] * 2 + ["a dog"] * 2
        assert not torch.equal(made["noise"][:2], made["noise"][2:])
        return made

    monkeypatch.setattr(batch_module, "batch_loss", loss)
    monkeypatch.setattr(batch_module, "make_batch", make)
    more = ["--masked_loss"] + ["--train_text_encoder"] * trained_text
    assert main(flags(tiny_sd1, pictures, tmp_path / "out", *more)) == 0
    assert len(seen) == 4
    prediction, preserved, mask = seen[0]  # before the first step the adapter does nothing
    assert preserved.shape == prediction[2:].shape and not preserved.requires_grad
    torch.testing.assert_close(prediction[2:], preserved)
    assert mask[:2].mean().item() == pytest.approx(0.5) and mask[2:].min() == 1
    prediction, preserved, _ = seen[-1]
    assert not torch.allclose(prediction[2:], preserved, atol=1e-3)


@pytest.mark.parametrize("more", [(), ("--train_text_encoder", "--adapter_dropout", "0.3")])
def test_a_run_resumes_exactly(tiny_sd1, pictures, tmp_path: Path, more: tuple[str, ...]) -> None:
    assert main(flags(tiny_sd1, pictures, tmp_path / "whole", *more)) == 0
    half = flags(tiny_sd1, pictures, tmp_path / "half", *more, "--checkpointing_steps", "2")
    assert main([*half, "--max_train_steps", "2"]) == 0
    assert main([*half, "--resume_from_checkpoint", "latest"]) == 0
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_it_needs_and_what_it_excludes(tmp_path: Path) -> None:
    known = flags(tmp_path, tmp_path, tmp_path)
    with pytest.raises(UserError, match="needs --class_prompt"):
        parse_settings([flag for flag in known if flag not in ("--class_prompt", "a dog")])
    with pytest.raises(UserError, match="give one"):
        parse_settings([*known, "--with_prior_preservation", "--class_data_dir", "x"])
