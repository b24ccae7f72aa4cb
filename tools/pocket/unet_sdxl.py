"""Trains the SDXL UNet, warm-started from the SD one: same layout, SDXL's conditioning.

Cross-attention reads both encoders' penultimate states (32, 192 + 192), `add_embedding` the pooled
embedding and the six time ids. Key and value weights are first mapped by least squares from the
new states to the old, so that training starts from a model that draws already.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from .clip import EMBED, TEXT_WIDTH, load_clip
from .data import load_pictures
from .export import projected_encoder_of, sdxl_pipeline
from .tokens import tokenize
from .training import Recipe, load_ema, save_atomic, train
from .unet import (
    BATCH,
    CONFIG,
    load_final_vae,
    load_unet,
    new_schedule,
    new_unet,
    prepare_latents,
    prepare_masks,
    random_captions,
    save_preview,
    spread_timesteps,
    v_loss,
)
from .vae import PIXELS, encode_means, halved

CONFIG_SDXL = CONFIG | {
    "cross_attention_dim": 2 * TEXT_WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + EMBED,
}
CROPPED_COUNT = 3000
RECIPE = Recipe(peak_lr=7e-4, warmup_steps=200, ema_decay=0.999, save_every=400, muon=True)


def new_unet_sdxl() -> UNet2DConditionModel:
    """An untrained SDXL UNet, laid out as `new_unet` but for the conditioning."""
    return new_unet(CONFIG_SDXL)


@torch.no_grad()
def encode_captions(encoder, tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both encoders' states (n, 32, 384), here twice the same, and the pooled embedding (n, 128).

    An empty caption gives zeros, as `force_zeros_for_empty_prompt` does in the pipeline.
    """
    device = next(encoder.parameters()).device
    ids = tokenize(tokenizer, captions).to(device)
    out = encoder(ids, output_hidden_states=True)
    said = torch.tensor([bool(text) for text in captions], device=device).float()
    states = torch.cat([out.hidden_states[-2]] * 2, -1)
    return states * said[:, None, None], out.text_embeds * said[:, None]


@torch.no_grad()
def warm_start(unet: UNet2DConditionModel, sd: UNet2DConditionModel, encoder, tokenizer) -> None:
    """Copies the SD weights; keys and values get `W_old @ M` with `old states ~ M @ new states`."""
    captions = [c for c in random_captions(list(range(600)), random.Random(0)) if c]
    out = encoder.text_model(input_ids=tokenize(tokenizer, captions), output_hidden_states=True)
    new = torch.cat([out.hidden_states[-2].flatten(0, 1)] * 2, -1)
    # The two halves are equal, so the minimum-norm solution (driver "gelsd") is the one wanted.
    mapping = torch.linalg.lstsq(new, out.last_hidden_state.flatten(0, 1), driver="gelsd").solution
    weights = dict(sd.state_dict())
    for name, weight in weights.items():
        if "attn2.to_k" in name or "attn2.to_v" in name:
            weights[name] = weight @ mapping.T
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("add_embedding") for name in missing):
        raise RuntimeError(f"the SD and SDXL UNets differ: {missing} {unexpected}")
    unet.add_embedding.linear_2.weight.mul_(0.05)
    unet.add_embedding.linear_2.bias.zero_()


def prepare_cropped(work_dir: Path, device: torch.device) -> None:
    """Writes `latents_cropped.pt`: blurred, enlarged and cropped pictures, their rows and time ids.

    The time ids are (original height, width, top, left, height, width), as SDXL has them.
    """
    path = work_dir / "latents_cropped.pt"
    if path.exists():
        return
    images, rng = halved(load_pictures(work_dir, "train")), np.random.default_rng(5)
    count = min(CROPPED_COUNT, len(images))
    rows = rng.choice(len(images), count, replace=False)
    out, ids = np.empty((count, PIXELS, PIXELS, 3), np.uint8), []
    for i, row in enumerate(rows):
        original, enlarged = (
            int(rng.integers(PIXELS // 2, PIXELS + 1)),
            int(rng.integers(PIXELS, PIXELS * 11 // 8 + 1)),
        )
        top, left = (int(v) for v in rng.integers(0, enlarged - PIXELS + 1, 2))
        picture = Image.fromarray(images[row]).resize((original, original), Image.BICUBIC)
        picture = picture.resize((enlarged, enlarged), Image.BICUBIC)
        out[i] = np.asarray(picture.crop((left, top, left + PIXELS, top + PIXELS)))
        ids.append((original, original, top, left, PIXELS, PIXELS))
    latents = encode_means(load_final_vae(work_dir).to(device), out)
    state = {"latents": latents, "rows": torch.from_numpy(rows)}
    save_atomic(state | {"time_ids": torch.tensor(ids)}, path)


def train_unet_sdxl(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet_sdxl.pt`.

    Where there is no state yet, the start is the SD UNet of `work_dir`.
    """
    prepare_latents(work_dir, device)
    prepare_cropped(work_dir, device)
    whole = torch.load(work_dir / "latents.pt", weights_only=True)
    cropped = torch.load(work_dir / "latents_cropped.pt", weights_only=True)
    plain_ids = torch.tensor([PIXELS, PIXELS, 0, 0, PIXELS, PIXELS])
    masks = prepare_masks(work_dir, len(whole))
    clip, tokenizer = load_clip(work_dir)
    encoder, schedule, vae = projected_encoder_of(clip), new_schedule(), load_final_vae(work_dir)
    torch.manual_seed(0)
    unet = new_unet_sdxl()
    if not (work_dir / "unet_sdxl.pt").exists():
        warm_start(unet, load_unet(work_dir), encoder, tokenizer)
    encoder.to(device)

    def batch_loss(model: UNet2DConditionModel, step: int, done: float) -> torch.Tensor:
        rng, few = random.Random(step), BATCH // 8
        a = rng.sample(range(len(whole)), BATCH - few)
        b = rng.sample(range(len(cropped["latents"])), few)
        latents = torch.cat([whole[a], cropped["latents"][b]]).float().to(device)
        time_ids = torch.cat([plain_ids.expand(len(a), 6), cropped["time_ids"][b]]).float()
        captions = random_captions([*a, *cropped["rows"][b].tolist()], rng)
        states, pooled = encode_captions(encoder, tokenizer, captions)
        added = {"text_embeds": pooled, "time_ids": time_ids.to(device)}
        # A cropped picture's thing is somewhere else: all of it weighs the same.
        weights = torch.cat([masks[a], torch.full((few, 1, 16, 16), 0.25)]).to(device)
        timesteps = spread_timesteps(BATCH, device)
        return v_loss(model, latents, timesteps, states, schedule, weights, added_cond_kwargs=added)

    def note(ema: UNet2DConditionModel, step: int) -> str:
        pipeline = sdxl_pipeline(ema, vae, clip, tokenizer)
        return save_preview(pipeline, work_dir / "previews" / f"unet_sdxl_{step:06d}.png")

    train(work_dir / "unet_sdxl.pt", unet.to(device), batch_loss, minutes, RECIPE, note)


def load_unet_sdxl(work_dir: Path) -> UNet2DConditionModel:
    """The trained SDXL UNet (averaged weights)."""
    return load_ema(work_dir / "unet_sdxl.pt", new_unet_sdxl())
