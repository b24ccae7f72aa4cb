"""Trains the SD UNet on cached latents: v-prediction, 10 % dropped captions, averaged weights.

bf16 autocast with plain (not fused) attention was fastest where the CPU has matrix instructions.
The thing is a quarter of the picture and the hard part of it, so its latents weigh more; middle
timesteps, at which shapes are decided, are drawn more often.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import trange

from .captions import caption
from .clip import TEXT_WIDTH, load_clip
from .data import load_pictures, training_picture
from .export import SCHEDULER, sd_pipeline, text_encoder_of
from .render import coverage
from .sheets import FIXED_PROMPTS, draw_prompts, labelled_grid
from .tokens import tokenize
from .training import Recipe, load_ema, save_atomic, train
from .vae import CHANNELS, DecodingPart, encode_means, halved, load_vae, new_vae, standardise

CONFIG = {
    "sample_size": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (96, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 3,  # diffusers' name for the number of heads; 64 wide each
    "norm_num_groups": 16,
}
BATCH, CAPTION_DROPOUT = 32, 0.1
THING_WEIGHT = 4.0  # added to the weight 1 that every latent has, where the thing covers it
TIMESTEP_SPREAD = 1.2  # of the logit-normal draw
RECIPE = Recipe(peak_lr=1e-3, warmup_steps=100, ema_decay=0.999, save_every=400, muon=True)


def new_unet(config: dict | None = None) -> UNet2DConditionModel:
    """An untrained UNet: 16 x 16 x 8 latents, attention at 8 x 8."""
    unet = UNet2DConditionModel(**(config or CONFIG))
    unet.set_attn_processor(AttnProcessor())
    return unet


def prepare_latents(work_dir: Path, device: torch.device) -> None:
    """Writes `latents.pt` (N, 8, 16, 16 fp16, standardised) and `vae_final.pt`.

    Pictures drawn since the last time are added; the standardisation is that of the first time.
    """
    path, final = work_dir / "latents.pt", work_dir / "vae_final.pt"
    images = load_pictures(work_dir, "train")
    known = torch.load(path, weights_only=True) if path.exists() else None
    if known is not None and len(known) >= len(images):
        return
    if not final.exists():
        vae = load_vae(work_dir).to(device)
        sample = encode_means(vae, halved(images[:4000])).float()
        mean, std = sample.mean((0, 2, 3)).to(device), sample.std((0, 2, 3)).to(device)
        standardise(vae, mean, std)
        save_atomic(vae.cpu().state_dict(), final)
    vae = load_final_vae(work_dir).to(device)
    start = 0 if known is None else len(known)
    fresh = encode_means(vae, halved(images[start:]))
    save_atomic(fresh if known is None else torch.cat([known, fresh]), path)


def prepare_masks(work_dir: Path, count: int) -> torch.Tensor:
    """How much of each latent the thing covers, (count, 1, 16, 16) in 0..1; kept in `masks.pt`."""
    path = work_dir / "masks.pt"
    known = torch.load(path, weights_only=True) if path.exists() else torch.empty(0, 1, 16, 16)
    if len(known) < count:
        rows = trange(len(known), count, desc="masks")
        fine = np.stack([coverage(training_picture(row)) for row in rows])[:, None]
        fresh = F.avg_pool2d(torch.from_numpy(fine).float(), 2)
        known = torch.cat([known, fresh])
        save_atomic(known, path)
    return known[:count]


def load_final_vae(work_dir: Path) -> AutoencoderKL:
    """The autoencoder with standardised latents, as exported."""
    vae = new_vae().requires_grad_(False).eval()
    vae.register_to_config(scaling_factor=1.0)
    vae.load_state_dict(torch.load(work_dir / "vae_final.pt", weights_only=True))
    if (work_dir / "decoder.pt").exists():
        load_ema(work_dir / "decoder.pt", DecodingPart(vae))
    return vae.requires_grad_(False).eval()


def new_schedule() -> DDPMScheduler:
    """The noise schedule of training."""
    return DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})


def v_loss(
    unet, latents, timesteps, states, schedule: DDPMScheduler, masks, **kwargs
) -> torch.Tensor:
    """Weighted mean squared error of the velocity.

    Args:
        latents: (N, 8, 16, 16).
        timesteps: (N,).
        masks: (N, 1, 16, 16), how much of each latent the thing covers.
    """
    noise = torch.randn_like(latents)
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    with torch.autocast(latents.device.type, torch.bfloat16):
        output = unet(noisy, timesteps, states, return_dict=False, **kwargs)[0]
    weights = (1 + THING_WEIGHT * masks).expand_as(target)
    return ((output.float() - target).square() * weights).sum() / weights.sum()


def spread_timesteps(count: int, device: torch.device) -> torch.Tensor:
    """Timesteps at equal shares of a logit-normal distribution, in random order."""
    shares = (torch.randperm(count) + torch.rand(count).clamp(1e-3, 1 - 1e-3)) / count
    middle = torch.sigmoid(TIMESTEP_SPREAD * torch.special.ndtri(shares))
    return (middle * 1000).long().clamp(0, 999).to(device)


def random_captions(rows: list[int], rng: random.Random) -> list[str]:
    """A caption for each training row; some are empty, for classifier-free guidance."""
    return [
        "" if rng.random() < CAPTION_DROPOUT else caption(training_picture(row), rng)
        for row in rows
    ]


def save_preview(pipeline, path: Path) -> str:
    """Draws the fixed prompts: look at it."""
    path.parent.mkdir(exist_ok=True)
    labelled_grid(draw_prompts(pipeline), FIXED_PROMPTS).save(path)
    return ""


def train_unet(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet.pt`."""
    prepare_latents(work_dir, device)
    latents = torch.load(work_dir / "latents.pt", weights_only=True)
    masks = prepare_masks(work_dir, len(latents))
    clip, tokenizer = load_clip(work_dir)
    encoder, schedule = text_encoder_of(clip).to(device), new_schedule()
    vae = load_final_vae(work_dir)
    torch.manual_seed(0)
    unet = new_unet()

    def batch_loss(model: UNet2DConditionModel, step: int, done: float) -> torch.Tensor:
        rng = random.Random(step)
        rows = rng.sample(range(len(latents)), BATCH)
        with torch.no_grad():
            ids = tokenize(tokenizer, random_captions(rows, rng)).to(device)
            states = encoder(ids).last_hidden_state
        batch = latents[rows].float().to(device)
        timesteps = spread_timesteps(BATCH, device)
        return v_loss(model, batch, timesteps, states, schedule, masks[rows].to(device))

    def note(ema: UNet2DConditionModel, step: int) -> str:
        pipeline = sd_pipeline(ema, vae, clip, tokenizer)
        return save_preview(pipeline, work_dir / "previews" / f"unet_{step:06d}.png")

    train(work_dir / "unet.pt", unet.to(device), batch_loss, minutes, RECIPE, note)


def load_unet(work_dir: Path) -> UNet2DConditionModel:
    """The trained UNet (averaged weights)."""
    return load_ema(work_dir / "unet.pt", new_unet())
