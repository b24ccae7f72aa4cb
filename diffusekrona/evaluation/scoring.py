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
from .encoders import Scorers
from .prompts import Prompt
from .reader import Reading, average, likeness, turned
from .statistics import Summary, summarise

METRICS = {
    "clip_i": ("CLIP-I", "similarity to the subject's photos in CLIP's space"),
    "dino": ("DINO", "similarity to the subject's photos in DINO's space"),
    "identity": ("identity", "agreement with the subject's attributes, as the reader sees them"),
    "clip_t": ("CLIP-T", "agreement with the prompt"),
    "place": ("place", "share of pictures in the place that the prompt names, by the reader"),
    "colour": ("colour", "share of pictures in the colour that the prompt names, by the reader"),
    "diversity": ("diversity", "distance between pictures of one prompt"),
    "pose": ("pose", "how far the subject is turned from its mean direction, by the reader"),
}
UNITS = {
    "clip_i": "cosine similarity",
    "dino": "cosine similarity",
    "identity": "overlap, 0 to 1",
    "clip_t": "cosine similarity",
    "place": "share of pictures",
    "colour": "share of pictures",
    "diversity": "1 − cosine similarity",
    "pose": "degrees, 0 to 180",
}
_BOUNDS = {
    "identity": (0.0, 1.0),
    "place": (0.0, 1.0),
    "colour": (0.0, 1.0),
    "diversity": (0.0, 2.0),
    "pose": (0.0, 180.0),
}


@dataclass(frozen=True)
class Reference:
    """A subject's photos as the scorers see them: unit-length features (m, d), and readings."""

    clip: torch.Tensor
    dino: torch.Tensor | None
    readings: tuple[Reading, ...] = ()

    def own_scores(self) -> dict[str, float]:
        """How like each other the photos are: what a perfect picture could hope to score."""
        features = {"clip_i": self.clip, "dino": self.dino}
        own = {
            name: _mean_of_pairs(f) for name, f in features.items() if f is not None and len(f) > 1
        }
        if len(self.readings) > 1:  # each photo against the others
            seen = self.readings
            left = [average([*seen[:n], *seen[n + 1 :]]) for n in range(len(seen))]
            own["identity"] = float(
                np.mean([likeness(*pair) for pair in zip(seen, left, strict=True)])
            )
        return own


def _mean_of_pairs(features: torch.Tensor) -> float:
    pairs = [(a @ b).item() for a, b in combinations(features, 2)]
    return sum(pairs) / len(pairs)


@dataclass(frozen=True)
class Scores:
    """Scores of pictures laid out as prompts × seeds.

    Attributes:
        pictures: metric to (prompts, seeds): "clip_i", "clip_t", with a second encoder "dino", and
            with a reader "identity", "pose" and, where every prompt names a place or a colour,
            "place" or "colour" (1 or 0).
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


def similarity(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Cosines (n, m) of unit-length features (n, d) and (m, d).

    Their mean over the subject's photos is CLIP-I, that of DINO's features DINO. Source:
    DreamBooth, arXiv 2208.12242, section 4.
    """
    return features @ others.T


def agreement(features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """CLIP-T: cosines (n,) of pictures and their own texts, unit-length features (n, d) each."""
    return (features * texts).sum(dim=1)


def summary_of(metric: str, values: np.ndarray) -> Summary:
    """`summarise` of a metric's own values, not of differences: the interval ends where its values
    do."""
    return summarise(values, _BOUNDS.get(metric, (-1.0, 1.0)))


def read_reference(photos: Sequence[Path], scorers: Scorers) -> Reference:
    """The subject's photos, as they are in their files."""
    images = [load_picture(path) for path in photos]
    return Reference(
        scorers.clip.images(images),
        scorers.dino.images(images) if scorers.dino else None,
        tuple(scorers.reader.read(images)) if scorers.reader else (),
    )


def score(
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    reference: Reference,
    scorers: Scorers,
) -> Scores:
    """Scores of pictures [prompt][seed], every prompt with as many seeds.

    Args:
        texts: one per prompt, that CLIP-T compares with.

    Raises:
        ValueError: no pictures, or prompts with different numbers of seeds.
    """
    shape = (len(images), len(images[0]))
    flat = [image for row in images for image in row]
    if len(flat) != shape[0] * shape[1] or len(texts) != shape[0]:
        raise ValueError("every prompt needs the same number of pictures and one text")
    features = scorers.clip.images(flat)
    words = scorers.clip.texts(list(texts)).repeat_interleave(shape[1], dim=0)
    values = {
        "clip_i": similarity(features, reference.clip).mean(dim=1),
        "clip_t": agreement(features, words),
    }
    if scorers.dino is not None and reference.dino is not None:
        found = similarity(scorers.dino.images(flat), reference.dino)
        values["dino"] = found.mean(dim=1)
    if scorers.reader is not None:
        readings = scorers.reader.read(flat)
        photos = average(reference.readings)
        values["identity"] = torch.tensor([likeness(one, photos) for one in readings])
        values["pose"] = torch.tensor(turned(readings))
        asked = {"place": scorers.reader.place_in, "colour": scorers.reader.colour_in}
        for name, label in (("place", "place"), ("colour", "main_colour")):
            wanted = [asked[name](text) for text in texts for _ in range(shape[1])]
            if None not in wanted:
                found = [one.best(label) for one in readings]
                right = [float(a == b) for a, b in zip(found, wanted, strict=True)]
                values[name] = torch.tensor(right)
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
