"""Trains the decoder alone, longer: latents stay, so no UNet has to be trained again."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .data import load_pictures
from .training import Recipe, train
from .unet import finish_vae
from .vae import DecodingPart, encode_means, psnr, reconstruction_loss, to_tensor

BATCH, LATENT_NOISE = 6, 0.05  # a UNet's latents are not exact either
RECIPE = Recipe(peak_lr=6e-4, warmup_steps=100, save_every=120)


def train_decoder(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/decoder.pt`."""
    images = load_pictures(work_dir, "train", part="small")
    test = load_pictures(work_dir, "test", 128, "small")
    vae = finish_vae(work_dir, device)
    part = DecodingPart(copy.deepcopy(vae).requires_grad_(True))

    def batch_loss(model: nn.Module, step: int, done: float) -> torch.Tensor:
        rows = np.random.default_rng(step).integers(0, len(images), BATCH)
        codes = encode_means(vae, images[rows]).float().to(device)
        codes = codes + LATENT_NOISE * torch.randn_like(codes)
        with torch.autocast(device.type, torch.bfloat16):
            output = model(codes).float()
        return reconstruction_loss(output, to_tensor(images[rows]).to(device))

    def note(ema: nn.Module, step: int) -> str:
        vae.post_quant_conv, vae.decoder = ema.post_quant_conv, ema.decoder
        return f"{psnr(vae.to(device), test):.2f} dB on held-out pictures"

    train(work_dir / "decoder.pt", part.to(device), batch_loss, minutes, RECIPE, note)
