"""Trained parts of a work folder, and the way back from exported folders to a work folder."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel

from . import clip, dino, reader_training, unet, unet_sdxl
from .data import load_pictures, test_picture
from .training import save_atomic


def trained_parts(work_dir: Path) -> dict:
    """Everything that `export_all` takes, as far as it has been trained in `work_dir`."""
    parts = {}
    if (work_dir / "clip.pt").exists():
        parts["clip"], parts["tokenizer"] = clip.load_clip(work_dir)
    if (work_dir / "unet.pt").exists():
        parts["vae"], parts["unet"] = unet.load_final_vae(work_dir), unet.load_unet(work_dir)
    if (work_dir / "unet_sdxl.pt").exists():
        parts["unet_sdxl"] = unet_sdxl.load_unet_sdxl(work_dir)
    if (work_dir / "dino.pt").exists():
        parts["dino"] = dino.load_dino(work_dir)
    if (work_dir / "reader.pt").exists():
        reader = reader_training.load_trained_reader(work_dir)
        images = load_pictures(work_dir, "test", part="small")
        pictures = [test_picture(row) for row in range(len(images))]
        parts["reader"] = reader
        parts["reader_errors"] = reader_training.errors_of(reader, images, pictures)
    return parts


def restore(models_dir: Path, work_dir: Path) -> None:
    """Writes the states from which the UNets continue, from exported weights (fp16) alone.

    The optimizer starts again, and the minutes that were spent are not known: they count from 0.
    Files that are in `work_dir` already stay.
    """
    sources = {
        "vae_final.pt": lambda: AutoencoderKL.from_pretrained(models_dir / "pocket" / "vae"),
        "clip.pt": lambda: CLIPModel.from_pretrained(models_dir / "pocket-clip"),
        "unet.pt": lambda: UNet2DConditionModel.from_pretrained(models_dir / "pocket" / "unet"),
        "unet_sdxl.pt": lambda: UNet2DConditionModel.from_pretrained(
            models_dir / "pocket-sdxl" / "unet"
        ),
    }
    for name, load in sources.items():
        if (work_dir / name).exists():
            continue
        weights = {key: value.float() for key, value in load().state_dict().items()}
        if name == "vae_final.pt":
            save_atomic(weights, work_dir / name)
        else:
            state = {"model": weights, "ema": weights, "optimizers": None, "spent": 0.0, "step": 0}
            save_atomic(state, work_dir / name)
