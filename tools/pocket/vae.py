"""Trains the autoencoder: 64 x 64 x 3 pictures <-> 16 x 16 x 8 latents.

No adversarial part and no perceptual network: an L1 loss on pixels and on their differences keeps
edges sharp. Most of the time goes to 32 x 32 crops; the last part sees whole pictures, as group
norm's statistics depend on what is in the frame.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from .data import load_pictures
from .training import Recipe, load_ema, train

CHANNELS, PIXELS = 8, 64
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": CHANNELS,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": PIXELS,
}
KL_WEIGHT, EDGE_WEIGHT, CROPS_SHARE = 2e-6, 0.25, 0.75
RECIPE = Recipe(peak_lr=2e-3, weight_decay=0.01, save_every=100)


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder whose posterior starts almost sharp (log-variance -5)."""
    vae = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.bias[CHANNELS:] = -5.0
    return vae


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels plus L1 of horizontal and vertical differences."""
    error = output - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * error.pow(2).mean() + EDGE_WEIGHT * edges


def random_crops(images: np.ndarray, count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """`count` crops (count, side, side, 3) of random pictures."""
    rows = rng.integers(0, len(images), count)
    ys, xs = rng.integers(0, images.shape[1] - side + 1, (2, count))
    return np.stack(
        [images[r, y : y + side, x : x + side] for r, y, x in zip(rows, ys, xs, strict=True)]
    )


class DecodingPart(nn.Module):
    """What turns standardised latents (N, 8, 16, 16) into pictures; shares the VAE's weights."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, 64, 64) in about -1..1."""
        return self.decoder(self.post_quant_conv(latents))


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean over pictures of the reconstruction's peak signal-to-noise ratio, in dB."""
    scores, device = [], next(vae.parameters()).device
    for part in np.array_split(images, max(1, len(images) // 32)):
        x = to_tensor(part).to(device)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        scores.append(10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3))))
    return float(torch.cat(scores).mean())


def train_vae(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/vae.pt`."""
    images = load_pictures(work_dir, "train", part="small")
    test = load_pictures(work_dir, "test", 128, "small")

    def batch_loss(vae: AutoencoderKL, step: int, done: float) -> torch.Tensor:
        rng = np.random.default_rng(step)
        count, side = (16, 32) if done < CROPS_SHARE else (5, PIXELS)
        x = to_tensor(random_crops(images, count, side, rng)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            output = vae.decode(posterior.sample()).sample.float()
        kl = posterior.kl().mean() / x[0].numel()
        return reconstruction_loss(output, x) + KL_WEIGHT * kl

    train(
        work_dir / "vae.pt",
        new_vae().to(device),
        batch_loss,
        minutes,
        RECIPE,
        lambda ema, step: f"{psnr(ema, test):.2f} dB on held-out pictures",
    )


def load_vae(work_dir: Path) -> AutoencoderKL:
    """The trained autoencoder (averaged weights), latents as they are."""
    return load_ema(work_dir / "vae.pt", new_vae())


@torch.no_grad()
def encode_means(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> torch.Tensor:
    """Posterior means of all pictures (N, 64, 64, 3), unscaled: float16 (N, 8, 16, 16)."""
    out = torch.empty(len(images), CHANNELS, 16, 16, dtype=torch.float16)
    device = next(vae.parameters()).device
    for start in range(0, len(images), batch):
        x = to_tensor(images[start : start + batch]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encode(x).latent_dist.mean
        out[start : start + batch] = mean.half().cpu()
    return out


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Rewrites the two 1x1 convolutions around the latents so that each channel is ~N(0, 1).

    `mean`, `std` (8,) are the present channels' statistics. Reconstructions do not change; the
    pipeline's single `scaling_factor` could not centre or balance the channels.
    """
    inner, outer = vae.quant_conv, vae.post_quant_conv
    outer.bias += (outer.weight[:, :, 0, 0] * mean).sum(1)
    outer.weight *= std[None, :, None, None]
    inner.weight[:CHANNELS] /= std[:, None, None, None]
    inner.bias[:CHANNELS] = (inner.bias[:CHANNELS] - mean) / std
    inner.bias[CHANNELS:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)
