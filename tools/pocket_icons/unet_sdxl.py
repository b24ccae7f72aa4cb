"""Trains the SDXL UNet, warm-started from the SD one: same layout, SDXL's conditioning.

Cross-attention reads both encoders' penultimate states (32, 128 + 128), `add_embedding` the pooled
embedding and the six time ids. Key and value weights are first mapped by least squares from the
new states to the old, so that training starts from a model that draws already; a quarter of an
hour then does what would take an hour from scratch.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from .clip import load_clip
from .concepts import BACKGROUNDS, CONCEPTS, FIXED_PROMPTS, random_caption
from .data import load_data
from .denoiser import train_denoiser
from .export import projected_encoder_of, sdxl_pipeline
from .grid import draw_prompts, labelled_grid
from .tokens import tokenize
from .training import agree, rank, save_atomic
from .unet import (
    BATCH,
    CAPTION_DROPOUT,
    CONFIG,
    load_final_vae,
    load_unet,
    new_schedule,
    v_loss,
)
from .vae import encode_means

CONFIG_SDXL = CONFIG | {
    "cross_attention_dim": 256,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + 128,
}
PEAK_LR, EMA_DECAY, CROPPED_COUNT = 3e-4, 0.99, 6_000


def new_unet_sdxl() -> UNet2DConditionModel:
    """An untrained SDXL UNet, laid out as `new_unet` but for the conditioning."""
    unet = UNet2DConditionModel(**CONFIG_SDXL)
    unet.set_attn_processor(AttnProcessor())
    return unet


class CaptionStatesXL:
    """Both encoders' states (n, 32, 256) and the pooled embedding (n, 128), cached in fp16.

    An empty caption gives zeros, as `force_zeros_for_empty_prompt` does in the pipeline.
    """

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer):
        self.encoder, self.tokenizer = projected_encoder_of(clip), tokenizer
        self.known = {"": (torch.zeros(32, 256).half(), torch.zeros(128).half())}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        new = list({c for c in captions if c not in self.known})
        if new:
            out = self.encoder(tokenize(self.tokenizer, new), output_hidden_states=True)
            one = out.hidden_states[-2].half()
            pairs = zip(torch.cat([one, one], -1), out.text_embeds.half(), strict=True)
            self.known.update(zip(new, pairs, strict=True))
        states, pooled = zip(*[self.known[c] for c in captions], strict=True)
        return torch.stack(states).float(), torch.stack(pooled).float()


@torch.no_grad()
def warm_start(unet: UNet2DConditionModel, sd: UNet2DConditionModel, states: CaptionStatesXL):
    """Copies the SD weights; keys and values get `W_old @ M` with `old states ~ M @ new states`."""
    rng = random.Random(0)
    pairs = [(c, b) for c in CONCEPTS for b in BACKGROUNDS]
    captions = [random_caption(*rng.choice(pairs), rng) for _ in range(400)]
    ids = tokenize(states.tokenizer, captions)
    out = states.encoder.text_model(input_ids=ids, output_hidden_states=True)
    new = out.hidden_states[-2].flatten(0, 1)
    new = torch.cat([new, new], -1)
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


def prepare_cropped(work_dir: Path) -> None:
    """Writes `latents_cropped.pt`: blurred, enlarged and cropped pictures with their time ids."""
    path = work_dir / "latents_cropped.pt"
    if path.exists():
        return
    images, labels = load_data(work_dir, "base")
    rng = np.random.default_rng(5)
    rows = rng.choice(len(images), CROPPED_COUNT, replace=False)
    out, ids = np.empty((CROPPED_COUNT, 64, 64, 3), np.uint8), []
    for i, row in enumerate(rows):
        original, enlarged = int(rng.integers(32, 65)), int(rng.integers(64, 89))
        top, left = (int(v) for v in rng.integers(0, enlarged - 63, 2))
        picture = Image.fromarray(images[row]).resize((original, original), Image.BICUBIC)
        picture = picture.resize((enlarged, enlarged), Image.BICUBIC)
        out[i] = np.asarray(picture.crop((left, top, left + 64, top + 64)))
        ids.append((original, original, top, left, 64, 64))
    latents = encode_means(load_final_vae(work_dir), out).half()
    state = {"latents": latents, "labels": torch.from_numpy(labels[rows])}
    save_atomic(state | {"time_ids": torch.tensor(ids)}, path)


def save_preview(work_dir: Path, ema: UNet2DConditionModel, step: int) -> None:
    """Draws the fixed prompts to `<work_dir>/previews/unet_sdxl_<step>.png`."""
    clip, tokenizer = load_clip(work_dir)
    pipeline = sdxl_pipeline(ema.eval(), load_final_vae(work_dir), clip, tokenizer)
    path = work_dir / "previews" / f"unet_sdxl_{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    labelled_grid(draw_prompts(pipeline), FIXED_PROMPTS).save(path)


def train_unet_sdxl(work_dir: Path, minutes: float, save_every: float = 240) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet_sdxl.pt`."""
    if rank() == 0:
        prepare_cropped(work_dir)
    agree(0)
    whole = torch.load(work_dir / "latents.pt", weights_only=False, mmap=True)
    cropped = torch.load(work_dir / "latents_cropped.pt", weights_only=False, mmap=True)
    plain_ids = torch.tensor([64, 64, 0, 0, 64, 64])
    states_of = CaptionStatesXL(*load_clip(work_dir))
    schedule = new_schedule()
    concepts, places = list(CONCEPTS), list(BACKGROUNDS)
    unet = new_unet_sdxl()
    torch.manual_seed(0)
    warm_start(unet, load_unet(work_dir), states_of)

    def batch_loss(rng: random.Random) -> torch.Tensor:
        quarter = BATCH // 4
        a = torch.tensor(rng.sample(range(len(whole["latents"])), BATCH - quarter))
        b = torch.tensor(rng.sample(range(len(cropped["latents"])), quarter))
        latents = torch.cat([whole["latents"][a], cropped["latents"][b]]).float()
        labels = torch.cat([whole["labels"][a], cropped["labels"][b]]).tolist()
        time_ids = torch.cat([plain_ids.expand(len(a), 6), cropped["time_ids"][b]])
        captions = [
            "" if rng.random() < CAPTION_DROPOUT else random_caption(concepts[c], places[p], rng)
            for c, p, _ in labels
        ]
        states, pooled = states_of(captions)
        shuffle = torch.randperm(BATCH)  # so that crops meet every part of the schedule
        timesteps = ((shuffle + torch.rand(BATCH)) * (1000 / BATCH)).long()
        added = {"text_embeds": pooled, "time_ids": time_ids.float()}
        return v_loss(unet, latents, timesteps, states, schedule, added_cond_kwargs=added)

    train_denoiser(
        work_dir / "unet_sdxl.pt",
        unet,
        batch_loss,
        functools.partial(save_preview, work_dir),
        minutes,
        save_every,
        peak_lr=PEAK_LR,
        warmup_steps=200,
        ema_decay=EMA_DECAY,
    )


def load_unet_sdxl(work_dir: Path) -> UNet2DConditionModel:
    """The trained SDXL UNet (averaged weights)."""
    unet = new_unet_sdxl().requires_grad_(False)
    unet.load_state_dict(torch.load(work_dir / "unet_sdxl.pt", weights_only=False)["ema"])
    return unet.eval()
