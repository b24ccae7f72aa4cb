"""Trains the SDXL UNet, warm-started from the SD one: same layout, SDXL's conditioning.

Cross-attention reads both encoders' penultimate states (32, 192 + 192), `add_embedding` the pooled
embedding and the six time ids. Key and value weights are first mapped by least squares from the
new states to the old, so that training starts from a model that draws already.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from .captions import caption
from .clip import EMBED, TEXT_WIDTH, load_clip
from .data import training_picture
from .export import projected_encoder_of, sdxl_pipeline
from .samples import Samples
from .tokens import tokenize
from .training import Recipe, load_ema, train
from .unet import (
    BATCH,
    CONFIG,
    GROW_BY,
    GROW_EVERY,
    finish_vae,
    load_unet,
    new_schedule,
    new_unet,
    on_device,
    save_preview,
    v_loss,
)

CONFIG_SDXL = CONFIG | {
    "cross_attention_dim": 2 * TEXT_WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + EMBED,
}
CROPPED = 8  # every eighth picture is blurred, enlarged and cropped
RECIPE = Recipe(peak_lr=7e-4, warmup_steps=200, ema_decay=0.999, save_every=400, muon=True)


def new_unet_sdxl() -> UNet2DConditionModel:
    """An untrained SDXL UNet, laid out as `new_unet` but for the conditioning."""
    return new_unet(CONFIG_SDXL)


@torch.no_grad()
def encode_ids(encoder, ids: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both encoders' states (n, 32, 384), here twice the same, and the pooled embedding (n, 128).

    Zeros where `said` (n,) is 0, as `force_zeros_for_empty_prompt` gives them in the pipeline.
    """
    out = encoder(ids, output_hidden_states=True)
    states = torch.cat([out.hidden_states[-2]] * 2, -1).float()
    return states * said[:, None, None], out.text_embeds.float() * said[:, None]


@torch.no_grad()
def warm_start(unet: UNet2DConditionModel, sd: UNet2DConditionModel, encoder, tokenizer) -> None:
    """Copies the SD weights; keys and values get `W_old @ M` with `old states ~ M @ new states`."""
    rng = random.Random(0)
    captions = [caption(training_picture(row), rng) for row in range(600)]
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


def train_unet_sdxl(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/unet_sdxl.pt`.

    Where there is no state yet, the start is the SD UNet of `work_dir`.
    """
    vae = finish_vae(work_dir, device)
    samples = Samples(work_dir, vae, CROPPED)
    clip, tokenizer = load_clip(work_dir)
    encoder, schedule = projected_encoder_of(clip), new_schedule()
    torch.manual_seed(0)
    unet = new_unet_sdxl()
    if not (work_dir / "unet_sdxl.pt").exists():
        warm_start(unet, load_unet(work_dir), encoder, tokenizer)
    encoder.to(device)

    def batch_loss(model: UNet2DConditionModel, step: int, done: float) -> torch.Tensor:
        if step % GROW_EVERY == 0:
            samples.grow(GROW_BY)
        batch = samples.draw(BATCH[device.type])
        with torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            states, pooled = encode_ids(encoder, batch.ids, batch.said)
        added = {"text_embeds": pooled, "time_ids": batch.time_ids}
        return v_loss(model, batch, states, schedule, added_cond_kwargs=added)

    def note(ema: UNet2DConditionModel, step: int) -> str:
        pipeline = sdxl_pipeline(ema, vae, clip, tokenizer).to(device)
        save_preview(pipeline, work_dir / "previews" / f"unet_sdxl_{step:06d}.png")
        return f"({samples.files} files of pictures)"

    train(work_dir / "unet_sdxl.pt", on_device(unet, device), batch_loss, minutes, RECIPE, note)


def load_unet_sdxl(work_dir: Path) -> UNet2DConditionModel:
    """The trained SDXL UNet (averaged weights)."""
    return load_ema(work_dir / "unet_sdxl.pt", new_unet_sdxl())
