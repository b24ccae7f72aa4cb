"""The quick start's picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny_models
import tiny_scorers
from diffusers import UNet2DConditionModel
from PIL import Image

from diffusekrona import KronAConfig, quickstart, save_adapter
from diffusekrona.bases import loading
from diffusekrona.common.errors import UserError
from diffusekrona.sampling.grids import read_recipe


def test_it_draws_the_comparison(
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet")
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    save_adapter(unet, tmp_path / "run" / "adapter.safetensors", metadata={"base_model": "pocket"})
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.effect_noise((50, 70), 90).save(tmp_path / "photos" / f"{number}.png")
    flags = {
        "--adapter": tmp_path / "run",
        "--photos": tmp_path / "photos",
        "--class_word": "owl",
        "--pretrained_model_name_or_path": tiny_sd1,
        "--clip": tiny_scorers.save_clip(tmp_path / "clip"),
        "--num_inference_steps": 2,
        "--output": tmp_path / "picture.png",
    }
    monkeypatch.setattr(loading, "quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["quickstart", *(str(x) for f in flags.items() for x in f)])
    quickstart.main()
    reported = capsys.readouterr().out
    assert (
        "an owl …" in reported
        and "a sks owl …" in reported
        and str(tmp_path / "picture.png") in reported
    )
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width > 5 * 192 and image.height > 4 * 192
    recipe = read_recipe(tmp_path / "picture.png")
    assert recipe["adapters"][0]["file"] == "run/adapter.safetensors"
    assert recipe["seeds"] == [0, 1, 2, 3]


def test_a_folder_is_not_renamed(tmp_path: Path) -> None:
    flags = ("--adapter", "none", "--photos", "none", "--class_word", "owl")
    with pytest.raises(UserError, match="is a folder"):
        quickstart.main([*flags, "--output", str(tmp_path)])
