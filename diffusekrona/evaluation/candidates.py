"""Scores of one candidate's pictures: those of an evaluation, and what a choice needs beside them.

Kept in a file per candidate, under a hash of everything they depend on: a run of `choose` that was
killed goes on, and another preference costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..bases.fingerprint import fingerprint_of
from ..common.errors import UserError
from ..common.files import write_text
from ..common.json_files import read_json
from ..common.pictures import content_key, load_picture
from .encoders import Scorers
from .scoring import Reference, Scores, read_reference, score

Levels = list[list[float]]  # (prompts, seeds)
VIEW_PARTS = (0.9, 0.8, 0.7)  # of a training picture's sides, in the middle and each corner
VIEWS = 2 * (1 + 5 * len(VIEW_PARTS))  # of each, the mirrored ones included
VIEW_SIZE = 512  # pixels of the shorter side that views are cut from: scorers see 224


@dataclass(frozen=True)
class CandidateScores:
    """Scores of one candidate.

    Attributes:
        pictures: (prompts, seeds) of "clip_i", "clip_t", "right_prompt" (1 where CLIP takes the
            picture's own prompt for the best of all) and, with a second encoder, "dino".
        nearest: (prompts, seeds) cosine to the nearest view of a training picture, see `views`: the
            mean of CLIP's and DINO's.
        diversity: (prompts,) mean over pairs of seeds of 1 - cosine; None with one seed.
        drift: (seeds,) 1 - cosine of the plain class word's picture to the base's own.
        floor: (prompts, seeds) mean cosine to the texts of the other prompts.
        nearest_photo: (prompts, seeds) number of the training picture that `nearest` is of.
    """

    pictures: dict[str, Levels]
    nearest: Levels
    diversity: list[float] | None
    drift: list[float]
    floor: Levels
    nearest_photo: list[list[int]] = field(default_factory=list)

    def likeness(self) -> np.ndarray:
        """(prompts, seeds): the mean of CLIP-I and DINO, or CLIP-I alone."""
        names = [name for name in ("clip_i", "dino") if name in self.pictures]
        return np.mean([np.array(self.pictures[name]) for name in names], axis=0)

    def level(self, name: str) -> np.ndarray:
        """(prompts, seeds) of one of `pictures`."""
        return np.array(self.pictures[name])


@dataclass(frozen=True)
class CandidateScorer:
    """What candidates are scored with and against.

    Attributes:
        texts: one per prompt, that CLIP-T compares with.
        reference: the held-out photos or, without any, the training pictures.
        trained: features (n × VIEWS, d) of the training pictures' views, picture by picture.
        baseline: how near real photos of the subject are to their nearest training picture: the
            held-out ones or, without any, each training picture to the others; None of one photo.
    """

    scorers: Scorers
    texts: Sequence[str]
    reference: Reference
    trained: torch.Tensor
    baseline: float | None
    key: str


def make_candidate_scorer(
    scorers: Scorers,
    texts: Sequence[str],
    training: Sequence[Path],
    held_out: Sequence[Path],
) -> CandidateScorer:
    """Encode the photos once.

    Args:
        training, held_out: the photos; without held-out ones likeness is to the training pictures.
    """
    reference = read_reference(list(held_out or training), scorers)
    own = _joined(reference.clip, reference.dino)
    each = [_encoded(scorers, views(load_picture(path, VIEW_SIZE))) for path in training]
    baseline = None
    if held_out:
        baseline = _nearest(own, torch.cat(each))[0].mean().item()
    elif len(training) > 1:  # each picture to the others
        nearest = [
            _nearest(own[n : n + 1], torch.cat([*each[:n], *each[n + 1 :]]))[0]
            for n in range(len(each))
        ]
        baseline = torch.cat(nearest).mean().item()
    names = [name for name in scorers.names.values() if name]
    parts = [
        *names,
        *map(fingerprint_of, names),
        *texts,
        f"views {VIEW_PARTS}",
        "training",
        *map(content_key, training),
        "held out",
    ]
    key = _hash([*parts, *map(content_key, held_out)])
    return CandidateScorer(scorers, texts, reference, torch.cat(each), baseline, key)


def _hash(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]


def views(photo: Image.Image) -> list[Image.Image]:
    """The picture, parts of it, and all of them mirrored: what is drawn of a picture that was
    learned by heart."""
    short = min(photo.size)
    if short > VIEW_SIZE:
        size = [round(side * VIEW_SIZE / short) for side in photo.size]
        photo = photo.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    found = [photo]
    for part in VIEW_PARTS:
        width, height = (round(side * part) for side in photo.size)
        right, low = photo.width - width, photo.height - height
        for left, top in ((right // 2, low // 2), (0, 0), (right, 0), (0, low), (right, low)):
            found.append(photo.crop((left, top, left + width, top + height)))
    return [*found, *map(ImageOps.mirror, found)]


def _encoded(scorers: Scorers, images: Sequence[Image.Image]) -> torch.Tensor:
    dino = scorers.dino.images(images) if scorers.dino else None
    return _joined(scorers.clip.images(images), dino)


def _joined(clip: torch.Tensor, dino: torch.Tensor | None) -> torch.Tensor:
    """Unit-length features whose cosine is the mean of CLIP's and DINO's."""
    return clip if dino is None else torch.cat([clip, dino], dim=1) / 2**0.5


def _nearest(features: torch.Tensor, trained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) each: a picture's cosine to the nearest view of a training picture, and which view."""
    found = (features @ trained.T).max(dim=1)
    return found.values, found.indices


def score_candidate(
    scorer: CandidateScorer,
    images: Sequence[Sequence[Image.Image]],
    plain: Sequence[Image.Image],
    plain_of_base: torch.Tensor,
) -> CandidateScores:
    """Scores of pictures [prompt][seed], by `scoring.score` where an evaluation has them too.

    Args:
        plain: of the plain class word, one per seed; plain_of_base: CLIP's features (seeds, d) of
            the base's.
    """
    shape = (len(images), len(images[0]))
    flat = [image for row in images for image in row]
    clip, dino = scorer.scorers.clip, scorer.scorers.dino
    words = clip.texts(list(scorer.texts))
    clip_features = clip.images(flat)
    dino_features = dino.images(flat) if dino else None
    # Each picture is encoded once, here.
    once = replace(
        scorer.scorers,
        clip=replace(clip, images=lambda _: clip_features, texts=lambda _: words),
        dino=dino and replace(dino, images=lambda _: dino_features),
    )
    scores: Scores = score(images, scorer.texts, scorer.reference, once)
    to_texts = clip_features @ words.T
    own = torch.arange(shape[0]).repeat_interleave(shape[1])
    right = (to_texts.argmax(dim=1) == own).float()
    of_own = to_texts[torch.arange(len(flat)), own]
    floor = (to_texts.sum(dim=1) - of_own) / max(1, shape[0] - 1)
    nearest, view = _nearest(_joined(clip_features, dino_features), scorer.trained)
    drift = 1 - (clip.images(plain) * plain_of_base).sum(dim=1)
    levels = {name: values.tolist() for name, values in scores.pictures.items()}
    levels["right_prompt"] = _levels(right, shape)
    return CandidateScores(
        levels,
        _levels(nearest, shape),
        None if np.isnan(scores.diversity).any() else scores.diversity.tolist(),
        drift.double().tolist(),
        _levels(floor if shape[0] > 1 else torch.zeros_like(floor), shape),
        (view // VIEWS).view(shape).tolist(),
    )


def _levels(values: torch.Tensor, shape: tuple[int, int]) -> Levels:
    return values.view(shape).double().tolist()


def kept_scores(path: Path, key: str) -> CandidateScores | None:
    """The scores in a file, if they were computed under this key."""
    if not path.is_file():
        return None
    try:
        kept = read_json(path, _Kept)
    except UserError:  # damaged: computed again
        return None
    return kept.scores if kept.key == key else None


def keep_scores(path: Path, key: str, scores: CandidateScores) -> None:
    """Write what `kept_scores` reads."""
    write_text(path, json.dumps(asdict(_Kept(key, scores))))


def scores_key(scorer: CandidateScorer, pictures: Sequence[Path]) -> str:
    """A hash of the scorers, the photos, the texts, and the pictures."""
    return _hash([scorer.key, *map(content_key, pictures)])


@dataclass(frozen=True)
class _Kept:
    key: str
    scores: CandidateScores
