"""The program that trains pocket's UNets: for a moment, on made-up data, and on again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tools.pocket_icons import unet, unet_sdxl
from tools.pocket_icons.clip import build_tokenizer, new_clip
from tools.pocket_icons.concepts import BACKGROUNDS, CONCEPTS
from tools.pocket_icons.vae import new_vae

PICTURES = 40


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before leave: pictures with labels, an autoencoder, a CLIP."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (PICTURES, 64, 64, 3), np.uint8)
    labels = chance.integers(0, (len(CONCEPTS), len(BACKGROUNDS), 1), (PICTURES, 3))
    np.save(folder / "data" / "base_images.npy", pictures)
    np.save(folder / "data" / "base_labels.npy", labels.astype(np.int32))
    torch.manual_seed(0)
    torch.save({"ema": new_vae().state_dict()}, folder / "vae.pt")
    torch.save({"model": new_clip(build_tokenizer()).state_dict()}, folder / "clip.pt")
    return folder


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_training_goes_on_where_it_was_left(family, work_dir: Path, monkeypatch) -> None:
    shown: list[int] = []
    for module in (unet, unet_sdxl):
        monkeypatch.setattr(module, "save_preview", lambda _, ema, step: shown.append(step))
    monkeypatch.setattr(unet_sdxl, "CROPPED_COUNT", PICTURES)
    train, load, name = {
        "sd": (unet.train_unet, unet.load_unet, "unet.pt"),
        "sdxl": (unet_sdxl.train_unet_sdxl, unet_sdxl.load_unet_sdxl, "unet_sdxl.pt"),
    }[family]
    if family == "sdxl" and not (work_dir / "unet.pt").exists():
        unet.train_unet(work_dir, 0.001)
        shown.clear()
    train(work_dir, 0.01)
    first = torch.load(work_dir / name, weights_only=False)
    train(work_dir, 0.01)  # its time is spent
    assert torch.load(work_dir / name, weights_only=False)["step"] == first["step"] == shown[-1]
    train(work_dir, 0.01 + 2 * first["spent"] / 60)
    second = torch.load(work_dir / name, weights_only=False)
    assert second["step"] > first["step"] and second["spent"] > first["spent"]
    assert np.isfinite(second["loss"])
    averaged = load(work_dir).state_dict()
    assert any(not torch.equal(averaged[key], first["ema"][key]) for key in averaged)
