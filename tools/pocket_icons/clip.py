"""Trains the CLIP: its text tower conditions the UNets, the whole is the offline scorer.

Four things are asked of it at once, all as softmax cross-entropies over cosine similarities:
caption of the picture, picture of the caption, noun of the picture (whatever stands behind it), and
which other picture shows the same individual (not just the same class). The last makes it a judge
of subjects: negatives hold other individuals of the class, in other colours and styles.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .concepts import BACKGROUNDS, CONCEPTS, TEMPLATES, article, random_caption
from .data import load_data
from .tokens import LENGTH, build_tokenizer, tokenize
from .training import Clock, progress_bar, save_atomic, show
from .vae import to_tensor

WIDTH, EMBED = 128, 128
PEAK_LR, INSTANCE_TEMPERATURE, INSTANCE_WEIGHT = 1e-3, 0.1, 1.0
CLASSES_A_BATCH = 24  # times two individuals, times two views each


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel: text 3 layers of 128, vision 4 layers of 192 on 8 x 8 patches."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": EMBED,
        "initializer_factor": 2.0,
        **ids,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": 64,
        "patch_size": 8,
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
    """Unit-length embeddings (N, 128) of pictures (N, 3, 64, 64) in -1..1."""
    pooled = clip.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(clip.visual_projection(pooled).float(), dim=-1)


def augment(x: torch.Tensor) -> torch.Tensor:
    """Blur, noise and light changes such as a VAE and a young UNet produce; (N, 3, 64, 64)."""
    kind = torch.rand(len(x), 1, 1, 1)
    small = F.interpolate(x, scale_factor=0.6, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=x.shape[-2:], mode="bicubic")
    x = torch.where(kind < 0.3, blurred, x)
    x = x + 0.06 * torch.randn_like(x) * (kind > 0.7)
    return x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)) + 0.06 * torch.randn(len(x), 1, 1, 1)


def sample_batch(labels: np.ndarray, index: dict, rng: random.Random) -> np.ndarray:
    """Row numbers of a batch: 24 classes x 2 individuals x 2 views.

    An icon in its own colours is drawn as one of the two individuals in 40 % of the cases.
    """
    rows = []
    for c in rng.sample(range(len(CONCEPTS)), CLASSES_A_BATCH):
        icons, others = index[c]
        first = rng.choice(icons if rng.random() < 0.7 else others)
        for rows_of_one in (first, rng.choice(others)):
            rows += rng.sample(rows_of_one, 2)
    return np.array(rows)


def individual_index(labels: np.ndarray) -> dict[int, tuple[list, list]]:
    """concept -> (rows of each icon as it is, rows of each recoloured individual)."""
    groups: dict[int, dict[int, list]] = {}
    for row, (c, _, individual) in enumerate(labels.tolist()):
        groups.setdefault(c, {}).setdefault(individual, []).append(row)
    return {
        c: (
            [rows for i, rows in g.items() if i % 1000 < 3],
            [rows for i, rows in g.items() if i % 1000 >= 3],
        )
        for c, g in groups.items()
    }


def clip_loss(
    images: torch.Tensor, texts: torch.Tensor, nouns: torch.Tensor, labels: torch.Tensor, scale
) -> torch.Tensor:
    """The four cross-entropies. images (N, d), texts (N, d), nouns (C, d), labels (N, 3)."""
    logits = scale * images @ texts.T
    same = (labels[:, None, :2] == labels[None, :, :2]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    loss = loss + F.cross_entropy(scale * images @ nouns.T, labels[:, 0].long())
    between = images @ images.T / INSTANCE_TEMPERATURE
    between = between.masked_fill(torch.eye(len(images), dtype=torch.bool), -1e4)
    partner = torch.arange(len(images)) ^ 1  # views of one individual are neighbours
    return loss + INSTANCE_WEIGHT * F.cross_entropy(between, partner)


@torch.no_grad()
def zero_shot(clip: CLIPModel, tokenizer, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose nearest "a photo of a <noun>" among all nouns is the right one."""
    clip.eval()
    texts = [f"a photo of {article(noun)}" for noun in CONCEPTS]
    nouns = text_embeds(clip, tokenize(tokenizer, texts))
    right = 0
    for part in np.array_split(np.arange(len(images)), max(1, len(images) // 128)):
        nearest = (image_embeds(clip, to_tensor(images[part])) @ nouns.T).argmax(1)
        right += int((nearest.numpy() == labels[part, 0]).sum())
    return right / len(images)


def train_clip(work_dir: Path, minutes: float) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/clip.pt`.

    Do not train it further once a UNet has been trained on its text states.
    """
    images, labels = load_data(work_dir, "scorer")
    test_images, test_labels = load_data(work_dir, "held_out")
    icons_only = np.flatnonzero(test_labels[:, 2] % 1000 < 3)
    path, clock, tokenizer = work_dir / "clip.pt", Clock(minutes * 60), build_tokenizer()
    clip = new_clip(tokenizer)
    optimizer = torch.optim.AdamW(clip.parameters(), PEAK_LR, (0.9, 0.98), weight_decay=0.05)
    if path.exists():
        state = torch.load(path, weights_only=False)
        clip.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent, clock.step = state["spent"], state["step"]
    rng, index = random.Random(clock.step), individual_index(labels)
    concepts, places = list(CONCEPTS), list(BACKGROUNDS)
    bar = progress_bar(clock, "clip")
    while clock.done < 1:
        rows = sample_batch(labels, index, rng)
        batch = torch.from_numpy(labels[rows])
        captions = [random_caption(concepts[c], places[b], rng) for c, b, _ in batch.tolist()]
        template = rng.choice(TEMPLATES)
        captions += [template.format(article(noun)) for noun in concepts]
        pixels = augment(to_tensor(images[rows]))
        for group in optimizer.param_groups:
            group["lr"] = clock.lr(PEAK_LR, 500)
        clip.train()
        with torch.autocast("cpu", torch.bfloat16):
            texts = text_embeds(clip, tokenize(tokenizer, captions))
            pictures = image_embeds(clip, pixels)
        scale = clip.logit_scale.exp().clamp(max=50)
        loss = clip_loss(pictures, texts[: len(rows)], texts[len(rows) :], batch, scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        show(bar, clock, loss=f"{loss.item():.3f}")
        if clock.step % 500 == 0 or clock.done >= 1:
            every = zero_shot(clip, tokenizer, test_images, test_labels)
            icons = zero_shot(clip, tokenizer, test_images[icons_only], test_labels[icons_only])
            bar.write(f"clip step {clock.step}: zero-shot {icons:.3f}, recoloured too {every:.3f}")
            state = {"model": clip.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"spent": clock.spent, "step": clock.step, "zero_shot": icons}
            save_atomic(state, path)
    bar.close()


def load_clip(work_dir: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """The trained CLIP and its tokenizer."""
    tokenizer = build_tokenizer()
    clip = new_clip(tokenizer).requires_grad_(False)
    clip.load_state_dict(torch.load(work_dir / "clip.pt", weights_only=False)["model"])
    return clip.eval(), tokenizer
