"""Trains pocket-dino: an image encoder that has seen no words and no labels, for the DINO score.

Self-supervised by instance discrimination: two pictures of one thing, in two poses and places, must
be nearer to each other than to anything else in the batch (a softmax cross-entropy over cosines, as
SimCLR has it). The batch holds other things of the same class, so likeness means this very thing.
It is given which two pictures belong together, and nothing else.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from .clip import augment, batch_rows
from .data import load_pictures
from .render import SIZE
from .training import Recipe, load_ema, train
from .vae import to_tensor

WIDTH, LAYERS, TEMPERATURE = 96, 5, 0.1
RECIPE = Recipe(
    peak_lr=1e-3, warmup_steps=300, betas=(0.9, 0.98), weight_decay=0.05, save_every=180
)


def new_dino() -> Dinov2Model:
    """An untrained encoder: 5 layers of 96 on 16 x 16 patches of 128 x 128 pictures."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=16,
    )
    # On CPU in bf16 the fused attention's backward pass is far slower than the plain one.
    config._attn_implementation = "eager"
    return Dinov2Model(config)


def features(model: Dinov2Model, pixels: torch.Tensor) -> torch.Tensor:
    """Unit-length features (N, 96) of pictures (N, 3, 128, 128) in -1..1."""
    first = model(pixel_values=pixels).last_hidden_state[:, 0]
    return F.normalize(first.float(), dim=-1)


def partner_logits(vectors: torch.Tensor) -> torch.Tensor:
    """Cosines of unit-length (N, d) over the temperature, none with itself."""
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return (vectors @ vectors.T / TEMPERATURE).masked_fill(itself, -1e4)


@torch.no_grad()
def partner_found(model: Dinov2Model, images: np.ndarray) -> float:
    """Share of pictures whose nearest among all shows the same thing; pairs are neighbours."""
    device = next(model.parameters()).device
    parts = np.array_split(images, max(1, len(images) // 100))
    vectors = torch.cat([features(model, to_tensor(part).to(device)) for part in parts])
    nearest = partner_logits(vectors).argmax(1).cpu()
    return (nearest == torch.arange(len(images)) ^ 1).float().mean().item()


def train_dino(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/dino.pt`."""
    images, test = load_pictures(work_dir, "train"), load_pictures(work_dir, "test", 300)

    def batch_loss(model: Dinov2Model, step: int, done: float) -> torch.Tensor:
        rows = batch_rows(len(images), random.Random(step))
        pixels = augment(to_tensor(images[rows]).to(device))
        with torch.autocast(device.type, torch.bfloat16):
            vectors = features(model, pixels)
        return F.cross_entropy(partner_logits(vectors), torch.arange(len(rows), device=device) ^ 1)

    def note(ema: Dinov2Model, step: int) -> str:
        return f"partner found among {len(test)}: {partner_found(ema, test):.3f}"

    train(work_dir / "dino.pt", new_dino().to(device), batch_loss, minutes, RECIPE, note)


def load_dino(work_dir: Path) -> Dinov2Model:
    """The trained encoder (averaged weights)."""
    return load_ema(work_dir / "dino.pt", new_dino())
