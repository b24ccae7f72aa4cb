"""Trains the autoencoder: 64 x 64 x 3 pictures <-> 16 x 16 x 4 latents.

No adversarial part and no perceptual network (there is none to fetch): an L1 loss on pixels and on
their differences keeps edges sharp. Three quarters of the time goes to 32 x 32 crops, four for the
price of one picture; the last quarter sees whole pictures, as group norm's statistics depend on
what is in the frame.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .data import load_data
from .training import Clock, ema_update, progress_bar, save_atomic, show

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 64,
}
PEAK_LR, KL_WEIGHT, EDGE_WEIGHT = 1.5e-3, 2e-6, 0.5


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder whose posterior starts almost sharp (log-variance -5)."""
    vae = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -5.0
    return vae


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels plus L1 of horizontal and vertical differences."""
    error = output - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * error.pow(2).mean() + EDGE_WEIGHT * edges


def crop(images: torch.Tensor, rng: np.random.Generator, side: int) -> torch.Tensor:
    """One random `side` x `side` crop of each picture of a batch (N, 3, H, W)."""
    ys, xs = rng.integers(0, 65 - side, (2, len(images)))
    return torch.stack(
        [im[:, y : y + side, x : x + side] for im, y, x in zip(images, ys, xs, strict=True)]
    )


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean over pictures of the reconstruction's peak signal-to-noise ratio, in dB."""
    vae.eval()
    scores = []
    for part in np.array_split(images, max(1, len(images) // 64)):
        x = to_tensor(part)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        scores.append(10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3))))
    return float(torch.cat(scores).mean())


def train_vae(work_dir: Path, minutes: float) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/vae.pt`."""
    base, _ = load_data(work_dir, "base")
    scorer, _ = load_data(work_dir, "scorer")
    held_out, _ = load_data(work_dir, "held_out")
    held_out = held_out[:: max(1, len(held_out) // 256)]
    path, clock = work_dir / "vae.pt", Clock(minutes * 60)
    vae = new_vae()
    ema = copy.deepcopy(vae).requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    if path.exists():
        state = torch.load(path, weights_only=False)
        vae.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent, clock.step = state["spent"], state["step"]
    rng = np.random.default_rng(clock.step)
    bar = progress_bar(clock, "vae")
    while clock.done < 1:
        crops = clock.done < 0.75
        half = 24 if crops else 6
        pictures = [s[np.sort(rng.integers(0, len(s), half))] for s in (base, scorer)]
        x = to_tensor(np.concatenate(pictures))
        x = crop(x, rng, 32) if crops else x
        for group in optimizer.param_groups:
            group["lr"] = clock.lr(PEAK_LR)
        vae.train()
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            output = vae.decode(posterior.sample()).sample.float()
        kl = posterior.kl().mean() / (x[0].numel())
        loss = reconstruction_loss(output, x) + KL_WEIGHT * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        ema_update(ema, vae, 0.999, clock.step)
        show(bar, clock, loss=f"{loss.item():.4f}")
        if clock.step % 1000 == 0 or clock.done >= 1:
            score = psnr(ema, held_out)
            bar.write(f"vae step {clock.step}: {score:.2f} dB on held-out composites")
            save_atomic(
                {
                    "model": vae.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "spent": clock.spent,
                    "step": clock.step,
                    "psnr": score,
                },
                path,
            )
    bar.close()


def load_vae(work_dir: Path) -> AutoencoderKL:
    """The trained autoencoder (averaged weights), without its scaling factor."""
    vae = new_vae().requires_grad_(False)
    vae.load_state_dict(torch.load(work_dir / "vae.pt", weights_only=False)["ema"])
    return vae.eval()


@torch.no_grad()
def encode_means(vae: AutoencoderKL, images: np.ndarray, batch: int = 128) -> torch.Tensor:
    """Posterior means, unscaled, of all pictures: float32 (N, 4, 16, 16)."""
    out = torch.empty(len(images), 4, 16, 16)
    for start in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(to_tensor(images[start : start + batch])).latent_dist.mean
        out[start : start + batch] = mean.float()
    return out
