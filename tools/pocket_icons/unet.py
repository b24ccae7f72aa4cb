"""Trains the SD UNet on cached latents: v-prediction, 10 % dropped captions, averaged weights.

bf16 autocast with plain (not fused) attention was fastest where the CPU has
matrix instructions; see docs/pocket.md.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from .clip import load_clip
from .concepts import BACKGROUNDS, CONCEPTS, FIXED_PROMPTS, random_caption
from .data import load_data
from .denoiser import train_denoiser
from .export import SCHEDULER, sd_pipeline, text_encoder_of
from .grid import draw_prompts, labelled_grid
from .tokens import tokenize
from .training import agree, rank, save_atomic
from .vae import encode_means, load_vae

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (96, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 2,  # diffusers' name for the number of heads; 64 wide each
    "norm_num_groups": 16,
}
PEAK_LR, BATCH, CAPTION_DROPOUT, EMA_DECAY = 8e-4, 16, 0.1, 0.999


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet: 16 x 16 x 4 latents, cross-attention at 8 x 8 and 4 x 4."""
    unet = UNet2DConditionModel(**CONFIG)
    unet.set_attn_processor(AttnProcessor())
    return unet


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Rewrites the two 1x1 convolutions around the latents so that each channel is ~N(0, 1).

    `mean`, `std` (4,) are the present channels' statistics. Reconstructions do not change; the
    pipeline's single `scaling_factor` could not centre or balance the channels.
    """
    inner, outer = vae.quant_conv, vae.post_quant_conv
    outer.bias += (outer.weight[:, :, 0, 0] * mean).sum(1)
    outer.weight *= std[None, :, None, None]
    inner.weight[:4] /= std[:, None, None, None]
    inner.bias[:4] = (inner.bias[:4] - mean) / std
    inner.bias[4:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)


def prepare_latents(work_dir: Path) -> None:
    """Writes `latents.pt` (N, 4, 16, 16 fp16, standardised, with labels) and `vae_final.pt`."""
    path = work_dir / "latents.pt"
    if path.exists():
        return
    vae = load_vae(work_dir)
    images, labels = load_data(work_dir, "base")
    latents = encode_means(vae, images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    standardise(vae, mean, std)
    save_atomic(vae.state_dict(), work_dir / "vae_final.pt")
    latents = (latents - mean[:, None, None]) / std[:, None, None]
    save_atomic({"latents": latents.half(), "labels": torch.from_numpy(labels)}, path)


def load_final_vae(work_dir: Path) -> AutoencoderKL:
    """The autoencoder with standardised latents, as exported."""
    vae = load_vae(work_dir)
    vae.register_to_config(scaling_factor=1.0)
    vae.load_state_dict(torch.load(work_dir / "vae_final.pt", weights_only=False))
    return vae


class CaptionStates:
    """Text states of captions (n, 32, 128), each caption encoded once and kept in fp16."""

    def __init__(self, work_dir: Path):
        clip, self.tokenizer = load_clip(work_dir)
        self.encoder = text_encoder_of(clip)
        self.known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        new = list({c for c in captions if c not in self.known})
        if new:
            states = self.encoder(tokenize(self.tokenizer, new)).last_hidden_state.half()
            self.known.update(zip(new, states, strict=True))
        return torch.stack([self.known[c] for c in captions]).float()


def new_schedule() -> DDPMScheduler:
    """The noise schedule of training."""
    return DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})


def v_loss(unet, latents, timesteps, states, schedule: DDPMScheduler, **kwargs) -> torch.Tensor:
    """Mean squared error of the velocity, (N, 4, 16, 16) latents, (N,) timesteps."""
    noise = torch.randn_like(latents)
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        output = unet(noisy, timesteps, states, return_dict=False, **kwargs)[0]
    return F.mse_loss(output.float(), target)


def save_preview(work_dir: Path, ema: UNet2DConditionModel, step: int) -> None:
    """Draws the fixed prompts to `<work_dir>/previews/unet_<step>.png`: look at it."""
    clip, tokenizer = load_clip(work_dir)
    pipeline = sd_pipeline(ema.eval(), load_final_vae(work_dir), clip, tokenizer)
    path = work_dir / "previews" / f"unet_{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    labelled_grid(draw_prompts(pipeline), FIXED_PROMPTS).save(path)


def train_unet(work_dir: Path, minutes: float, save_every: float = 300) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet.pt` every `save_every` s."""
    if rank() == 0:
        prepare_latents(work_dir)
    agree(0)
    cache = torch.load(work_dir / "latents.pt", weights_only=False, mmap=True)
    latents, labels = cache["latents"], cache["labels"]
    states_of, schedule = CaptionStates(work_dir), new_schedule()
    concepts, places = list(CONCEPTS), list(BACKGROUNDS)
    torch.manual_seed(0)
    unet = new_unet()

    def batch_loss(rng: random.Random) -> torch.Tensor:
        rows = torch.from_numpy(np.array(rng.sample(range(len(latents)), BATCH)))
        captions = [
            "" if rng.random() < CAPTION_DROPOUT else random_caption(concepts[c], places[b], rng)
            for c, b, _ in labels[rows].tolist()
        ]
        # One timestep from each of BATCH equal parts of the range: less noise in the loss.
        timesteps = ((torch.arange(BATCH) + torch.rand(BATCH)) * (1000 / BATCH)).long()
        return v_loss(unet, latents[rows].float(), timesteps, states_of(captions), schedule)

    train_denoiser(
        work_dir / "unet.pt",
        unet,
        batch_loss,
        functools.partial(save_preview, work_dir),
        minutes,
        save_every,
        peak_lr=PEAK_LR,
        warmup_steps=500,
        ema_decay=EMA_DECAY,
    )


def load_unet(work_dir: Path) -> UNet2DConditionModel:
    """The trained UNet (averaged weights)."""
    unet = new_unet().requires_grad_(False)
    unet.load_state_dict(torch.load(work_dir / "unet.pt", weights_only=False)["ema"])
    return unet.eval()
