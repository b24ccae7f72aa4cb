"""Trains the SD UNet on latents: v-prediction, 10 % dropped captions, averaged weights.

bf16 autocast; on a CPU with plain (not fused) attention, which was fastest where it has matrix
instructions. Larger batches on a GPU, which would wait for the CPU otherwise.
The thing is a quarter of the picture and the hard part of it, so its latents weigh more; middle
timesteps, at which shapes are decided, are drawn more often.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from .clip import TEXT_WIDTH, load_clip
from .data import load_pictures
from .export import SCHEDULER, sd_pipeline, text_encoder_of
from .samples import Batch, Samples
from .sheets import FIXED_PROMPTS, draw_prompts, labelled_grid
from .training import Recipe, load_ema, save_atomic, train
from .vae import CHANNELS, DecodingPart, encode_means, load_vae, new_vae, standardise

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
BATCH = {"cpu": 32, "cuda": 1024}
GROW_EVERY, GROW_BY = 50, 4  # steps, files: takes in pictures that are drawn meanwhile
THING_WEIGHT = 4.0  # added to the weight 1 that every latent has, where the thing covers it
TIMESTEP_SPREAD = 1.2  # of the logit-normal draw
RECIPE = Recipe(peak_lr=1e-3, warmup_steps=100, ema_decay=0.999, save_every=400, muon=True)


def new_unet(config: dict | None = None) -> UNet2DConditionModel:
    """An untrained UNet: 16 x 16 x 8 latents, attention at 8 x 8."""
    unet = UNet2DConditionModel(**(config or CONFIG))
    unet.set_attn_processor(AttnProcessor())
    return unet


def on_device(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """The UNet on `device`, with the attention that is fastest there; compiled on a GPU."""
    if device.type == "cuda":
        unet.set_attn_processor(AttnProcessor2_0())
        unet.compile()
    return unet.to(device)


def finish_vae(work_dir: Path, device: torch.device) -> AutoencoderKL:
    """The autoencoder on `device`, as exported: writes `vae_final.pt` where it is missing."""
    final = work_dir / "vae_final.pt"
    if not final.exists():
        vae = load_vae(work_dir).to(device)
        sample = encode_means(vae, load_pictures(work_dir, "train", 4000, "small")).float()
        mean, std = sample.mean((0, 2, 3)).to(device), sample.std((0, 2, 3)).to(device)
        standardise(vae, mean, std)
        save_atomic(vae.cpu().state_dict(), final)
    return load_final_vae(work_dir).to(device)


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


def v_loss(unet, batch: Batch, states, schedule: DDPMScheduler, **kwargs) -> torch.Tensor:
    """Weighted mean squared error of the velocity, at timesteps drawn for the batch."""
    latents = batch.latents
    noise, timesteps = torch.randn_like(latents), spread_timesteps(len(latents), latents.device)
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    with torch.autocast(latents.device.type, torch.bfloat16):
        output = unet(noisy, timesteps, states, return_dict=False, **kwargs)[0]
    weights = (1 + THING_WEIGHT * batch.masks).expand_as(target)
    return ((output.float() - target).square() * weights).sum() / weights.sum()


def spread_timesteps(count: int, device: torch.device) -> torch.Tensor:
    """Timesteps at equal shares of a logit-normal distribution, in random order."""
    within = torch.rand(count, device=device).clamp(1e-3, 1 - 1e-3)
    shares = (torch.randperm(count, device=device) + within) / count
    middle = torch.sigmoid(TIMESTEP_SPREAD * torch.special.ndtri(shares))
    return (middle * 1000).long().clamp(0, 999)


def save_preview(pipeline, path: Path) -> None:
    """Draws the fixed prompts: look at it."""
    path.parent.mkdir(exist_ok=True)
    labelled_grid(draw_prompts(pipeline), FIXED_PROMPTS).save(path)


def train_unet(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet.pt`."""
    vae = finish_vae(work_dir, device)
    samples = Samples(work_dir, vae)
    clip, tokenizer = load_clip(work_dir)
    encoder, schedule = text_encoder_of(clip).to(device), new_schedule()
    torch.manual_seed(0)
    unet = new_unet()

    def batch_loss(model: UNet2DConditionModel, step: int, done: float) -> torch.Tensor:
        if step % GROW_EVERY == 0:
            samples.grow(GROW_BY)
        batch = samples.draw(BATCH[device.type])
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            states = encoder(batch.ids).last_hidden_state
        return v_loss(model, batch, states.float(), schedule)

    def note(ema: UNet2DConditionModel, step: int) -> str:
        pipeline = sd_pipeline(ema, vae, clip, tokenizer).to(device)
        save_preview(pipeline, work_dir / "previews" / f"unet_{step:06d}.png")
        return f"({samples.files} files of pictures)"

    train(work_dir / "unet.pt", on_device(unet, device), batch_loss, minutes, RECIPE, note)


def load_unet(work_dir: Path) -> UNet2DConditionModel:
    """The trained UNet (averaged weights)."""
    return load_ema(work_dir / "unet.pt", new_unet())
