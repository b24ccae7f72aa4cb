"""Trains the CLIP: its text tower conditions the UNets, the whole is the offline scorer.

The text tower learns from captions and labels alone and is then kept. The rest learns by contrast.
Asked of it at once, all as softmax cross-entropies over cosine similarities: caption of the
picture, picture of the caption, noun and place of the picture, and which other picture shows the
same thing (not just the same class). Negatives hold other things of the class.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .captions import article, caption
from .data import load_pictures, test_picture, training_picture
from .records import (
    ACCESSORIES,
    COLOURS,
    HELD_OUT_FROM,
    NOUNS,
    PATTERNS,
    PLACES,
    Picture,
    draw_picture,
)
from .render import SIZE
from .tokens import LENGTH, build_tokenizer, tokenize
from .training import Recipe, load_ema, train
from .vae import to_tensor

TEXT_WIDTH, TEXT_LAYERS, VISION_WIDTH, EMBED = 192, 3, 128, 128
INSTANCE_TEMPERATURE, MAX_SCALE, TEXT_STEPS = 0.1, 50.0, 400
CLASSES, THINGS = 8, 3  # of a batch: classes times things of each, in two pictures each
RECIPE = Recipe(peak_lr=1e-3, warmup_steps=300, betas=(0.9, 0.98), weight_decay=0.05, save_every=90)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel: text 3 layers of 192, vision 4 layers of 128 on 16 x 16 patches."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 6,
        "max_position_embeddings": LENGTH,
        "projection_dim": EMBED,
        "initializer_factor": 2.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 4 * VISION_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 16,
        "projection_dim": EMBED,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
    # On CPU in bf16 the fused attention's backward pass is 2.6 times slower than the plain one.
    config._attn_implementation = "eager"
    return CLIPModel(config)


def text_embeds(clip: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Unit-length text embeddings (N, 128)."""
    pooled = clip.text_model(input_ids=ids).pooler_output
    return F.normalize(clip.text_projection(pooled).float(), dim=-1)


def image_embeds(clip: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit-length embeddings (N, 128) of pictures (N, 3, 128, 128) in -1..1."""
    pooled = clip.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(clip.visual_projection(pooled).float(), dim=-1)


def augment(x: torch.Tensor) -> torch.Tensor:
    """Blur, noise and light changes such as a VAE and a young UNet produce; (N, 3, H, W)."""
    kind = torch.rand(len(x), 1, 1, 1, device=x.device)
    small = F.interpolate(x, scale_factor=0.4, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    x = torch.where(kind < 0.3, blurred, x)
    x = x + 0.06 * torch.randn_like(x) * (kind > 0.7)
    spread = torch.randn(2, len(x), 1, 1, 1, device=x.device)
    return x * (1 + 0.05 * spread[0]) + 0.03 * spread[1]


def batch_rows(count: int, rng: random.Random) -> list[int]:
    """Rows of a batch: 8 classes, 3 things of each, two pictures of each thing, neighbours."""
    rounds = count // 2 // len(NOUNS)
    pairs = [
        turn * len(NOUNS) + noun
        for noun in rng.sample(range(len(NOUNS)), CLASSES)
        for turn in rng.sample(range(rounds), THINGS)
    ]
    return [2 * pair + side for pair in pairs for side in (0, 1)]


def clip_loss(images, texts, nouns, places, pictures: list[Picture], scale) -> torch.Tensor:
    """The cross-entropies.

    Args:
        images, texts: (N, d), of the batch; two pictures of a thing are neighbours.
        nouns, places: (C, d), (P, d), texts of all classes and places.
        scale: factor of the cosines.
    """
    own = torch.arange(len(images), device=images.device)
    logits = scale * images @ texts.T
    loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    noun = torch.tensor([NOUNS.index(p.identity.noun) for p in pictures], device=images.device)
    names = list(PLACES)
    place = torch.tensor([names.index(p.setting.place) for p in pictures], device=images.device)
    loss = loss + 0.5 * F.cross_entropy(scale * images @ nouns.T, noun)
    loss = loss + 0.5 * F.cross_entropy(scale * images @ places.T, place)
    itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
    between = (images @ images.T / INSTANCE_TEMPERATURE).masked_fill(itself, -1e4)
    return loss + F.cross_entropy(between, own ^ 1)


NOUN_TEXTS = [f"a photo of {article(noun)}" for noun in NOUNS]
PLACE_TEXTS = [f"a photo {words}" for words in PLACES.values()]


@torch.no_grad()
def zero_shot(clip: CLIPModel, tokenizer, images: np.ndarray) -> tuple[float, float, float]:
    """Shares of test pictures (row 0 on) whose class, place and own caption among 100 are found."""
    device = next(clip.parameters()).device
    rng = random.Random(0)
    pictures = [test_picture(row) for row in range(len(images))]
    texts = NOUN_TEXTS + PLACE_TEXTS + [caption(p, rng) for p in pictures]
    vectors = text_embeds(clip, tokenize(tokenizer, texts).to(device))
    parts = np.array_split(images, max(1, len(images) // 100))
    seen = torch.cat([image_embeds(clip, to_tensor(part).to(device)) for part in parts])
    nouns, places, own = vectors.split([len(NOUNS), len(PLACES), len(images)])
    names = list(PLACES)
    noun = torch.tensor([NOUNS.index(p.identity.noun) for p in pictures])
    place = torch.tensor([names.index(p.setting.place) for p in pictures])
    right = ((seen @ nouns.T).argmax(1).cpu() == noun).float().mean()
    there = ((seen @ places.T).argmax(1).cpu() == place).float().mean()
    found = [
        (a @ b.T).argmax(1).cpu() == torch.arange(len(a))
        for a, b in zip(seen.split(100), own.split(100), strict=True)
    ]
    return float(right), float(there), float(torch.cat(found).float().mean())


def label_targets(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    """What captions may say, as class indices (N,)."""
    places, colours = list(PLACES), list(COLOURS)
    return {
        "noun": torch.tensor([NOUNS.index(p.identity.noun) for p in pictures]),
        "place": torch.tensor([places.index(p.setting.place) for p in pictures]),
        "colour": torch.tensor([colours.index(p.identity.main.name) for p in pictures]),
        "pattern": torch.tensor([PATTERNS.index(p.identity.pattern) for p in pictures]),
        "accessory": torch.tensor([ACCESSORIES.index(p.identity.accessory) for p in pictures]),
    }


def pretrain_text(clip: CLIPModel, tokenizer: CLIPTokenizer, steps: int = TEXT_STEPS) -> float:
    """Teaches the text tower, from captions alone, to keep apart what they say.

    Linear heads on the last token predict the labels; without this the tower, whose picture half
    finds classes late, draws nouns together that it should distinguish. Returns the last loss.
    """
    torch.manual_seed(0)
    device = next(clip.parameters()).device
    sizes = {"noun": len(NOUNS), "place": len(PLACES), "colour": len(COLOURS)}
    sizes |= {"pattern": len(PATTERNS), "accessory": len(ACCESSORIES)}
    heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, n) for name, n in sizes.items()}).to(device)
    parameters = [*clip.text_model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.01)
    value = math.nan
    for step in range(steps):
        rng = random.Random(f"text {step}")
        pictures = [draw_picture(rng.randrange(HELD_OUT_FROM)) for _ in range(64)]
        ids = tokenize(tokenizer, [caption(p, rng) for p in pictures]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            pooled = clip.text_model(input_ids=ids).pooler_output
        losses = [
            F.cross_entropy(heads[name](pooled.float()), target.to(device))
            for name, target in label_targets(pictures).items()
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        value = float(loss.detach())
    clip.zero_grad()
    return value


def train_clip(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/clip.pt`.

    The text tower learns first, from captions alone, and is then kept: the UNets may be trained on
    its states while the picture tower still learns.
    """
    images, test = load_pictures(work_dir, "train"), load_pictures(work_dir, "test", 500)
    tokenizer = build_tokenizer()

    def batch_loss(clip: CLIPModel, step: int, done: float) -> torch.Tensor:
        rng = random.Random(step)
        rows = batch_rows(len(images), rng)
        pictures = [training_picture(row) for row in rows]
        captions = [caption(picture, rng) for picture in pictures] + NOUN_TEXTS + PLACE_TEXTS
        pixels = augment(to_tensor(images[rows]).to(device))
        ids = tokenize(tokenizer, captions).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            texts, seen = text_embeds(clip, ids), image_embeds(clip, pixels)
        own, nouns, places = texts.split([len(rows), len(NOUNS), len(PLACES)])
        scale = clip.logit_scale.exp().clamp(max=MAX_SCALE)
        return clip_loss(seen, own, nouns, places, pictures, scale)

    def note(clip: CLIPModel, step: int) -> str:
        noun, place, own = zero_shot(clip, tokenizer, test)
        return f"class {noun:.3f}, place {place:.3f}, own caption among 100 {own:.3f}"

    clip = new_clip(tokenizer).to(device)
    if not (work_dir / "clip.pt").exists():
        loss = pretrain_text(clip, tokenizer)
        print(f"clip: the text tower's labels, loss {loss:.3f}", flush=True)
    clip.text_model.requires_grad_(False)
    train(work_dir / "clip.pt", clip, batch_loss, minutes, RECIPE, note)


def load_clip(work_dir: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """The trained CLIP (averaged weights) and its tokenizer."""
    tokenizer = build_tokenizer()
    return load_ema(work_dir / "clip.pt", new_clip(tokenizer)), tokenizer
