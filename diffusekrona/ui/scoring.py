"""Scores of single pictures, by the evaluation's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..common.pictures import load_picture
from ..data.folder import find_pictures
from ..sampling.grids import read_recipe
from .places import Workspace
from .uploads import picture_folder


def score_pictures(workspace: Workspace, paths: Sequence[Path], subject: str) -> tuple[str, ...]:
    """ "CLIP-I 0.81, CLIP-T 0.27" of each picture, by the bundled CLIP.

    The first is its likeness to the subject's photos, the second to its prompt.

    Raises:
        UserError: the subject has no photos.
    """
    from ..evaluation.scores import clip_i, clip_t, image_features, text_features

    clip = _clip()
    photos = [load_picture(p) for p in find_pictures(picture_folder(workspace, subject))[0]]
    references = image_features(clip, photos)
    lines = []
    for path in paths:
        features = image_features(clip, [load_picture(path)])
        prompt = text_features(clip, [str((read_recipe(path) or {}).get("prompt", ""))])
        likeness, obedience = clip_i(features, references), clip_t(features, prompt)
        lines.append(f"CLIP-I {likeness:.2f}, CLIP-T {obedience:.2f}")
    return tuple(lines)


@lru_cache(maxsize=1)
def _clip() -> Any:
    from ..evaluation.scores import load_clip

    return load_clip(None)
