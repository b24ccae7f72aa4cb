"""Scores of a set of pictures against a subject's photos and the pictures' prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..common.pictures import load_picture
from .encoders import Encoder
from .prompts import Prompt

METRICS = {
    "clip_i": ("CLIP-I", "similarity to the subject's photos in CLIP's space"),
    "dino": ("DINO", "similarity to the subject's photos in DINO's space"),
    "clip_t": ("CLIP-T", "agreement with the prompt"),
    "diversity": ("diversity", "distance between pictures of one prompt"),
}
UNITS = {
    "clip_i": "cosine similarity",
    "dino": "cosine similarity",
    "clip_t": "cosine similarity",
    "diversity": "1 − cosine similarity",
}


@dataclass(frozen=True)
class Reference:
    """A subject's photos as the encoders see them: unit-length features (m, d), DINO's or None."""

    clip: torch.Tensor
    dino: torch.Tensor | None

    def own_scores(self) -> dict[str, float]:
        """How like each other the photos are: what a perfect picture could hope to score."""
        features = {"clip_i": self.clip, "dino": self.dino}
        return {
            name: _mean_of_pairs(f) for name, f in features.items() if f is not None and len(f) > 1
        }


def _mean_of_pairs(features: torch.Tensor) -> float:
    pairs = [(a @ b).item() for a, b in combinations(features, 2)]
    return sum(pairs) / len(pairs)


@dataclass(frozen=True)
class Scores:
    """Scores of pictures laid out as prompts × seeds.

    Attributes:
        pictures: metric to (prompts, seeds): "clip_i", "clip_t" and, with a second encoder, "dino".
        diversity: (prompts,): mean over pairs of seeds of 1 - cosine in CLIP's space; NaN for one.
        features: CLIP's, (prompts, seeds, d), unit length.
    """

    pictures: dict[str, np.ndarray]
    diversity: np.ndarray
    features: torch.Tensor

    def levels(self, metric: str) -> np.ndarray:
        """The array to summarise: (prompts, seeds), for diversity (prompts,)."""
        return self.diversity if metric == "diversity" else self.pictures[metric]

    def metrics(self) -> list[str]:
        """Those that there are, in the order in which they are shown."""
        have = set(self.pictures)
        if not np.isnan(self.diversity).all():
            have.add("diversity")
        return [name for name in METRICS if name in have]


def read_reference(photos: Sequence[Path], clip: Encoder, dino: Encoder | None) -> Reference:
    """The subject's photos, as they are in their files."""
    images = [load_picture(path) for path in photos]
    return Reference(clip.images(images), dino.images(images) if dino else None)


def score(
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    reference: Reference,
    clip: Encoder,
    dino: Encoder | None,
) -> Scores:
    """Scores of pictures [prompt][seed], every prompt with as many seeds.

    CLIP-I and DINO of a picture are its mean cosine to the subject's photos; CLIP-T is its cosine
    to `texts`, one per prompt. Source: DreamBooth, arXiv 2208.12242, section 4.

    Raises:
        ValueError: no pictures, or prompts with different numbers of seeds.
    """
    shape = (len(images), len(images[0]))
    flat = [image for row in images for image in row]
    if len(flat) != shape[0] * shape[1] or len(texts) != shape[0]:
        raise ValueError("every prompt needs the same number of pictures and one text")
    features = clip.images(flat)
    words = clip.texts(list(texts)).repeat_interleave(shape[1], dim=0)
    values = {
        "clip_i": (features @ reference.clip.T).mean(dim=1),
        "clip_t": (features * words).sum(dim=1),
    }
    if dino is not None:
        values["dino"] = (dino.images(flat) @ reference.dino.T).mean(dim=1)
    grouped = features.view(*shape, -1)
    return Scores(
        {name: tensor.view(shape).double().numpy() for name, tensor in values.items()},
        np.array([_distance(row) for row in grouped]),
        grouped,
    )


def _distance(features: torch.Tensor) -> float:
    """Mean of 1 - cosine over pairs of (seeds, d); NaN for a single picture."""
    return 1 - _mean_of_pairs(features) if len(features) > 1 else float("nan")


def scored_texts(prompts: Sequence[Prompt], name: str) -> list[str]:
    """The texts that CLIP-T compares with: those of the plain class, since no CLIP knows the
    identifier, or of identifier and class."""
    return [prompt.text(name) for prompt in prompts]
