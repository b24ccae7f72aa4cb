"""Scores of single pictures, by the evaluation's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..bases.bundled import is_bundled
from ..common.pictures import load_picture
from ..data.folder import find_pictures
from ..evaluation.settings import EncoderSettings
from ..sampling.grids import read_recipe
from .places import Workspace
from .uploads import picture_folder

if TYPE_CHECKING:
    from ..evaluation.encoders import ClipEncoder


def score_pictures(workspace: Workspace, paths: Sequence[Path], subject: str) -> tuple[str, ...]:
    """ "CLIP-I 0.81, CLIP-T 0.27 by pocket-clip" of each picture, by the CLIP that suits the base
    that drew them all.

    The first is its likeness to the subject's photos, the second to its prompt.

    Raises:
        UserError: the subject has no photos, or the CLIP model cannot be loaded.
    """
    from ..evaluation.encoders import choose_names
    from ..evaluation.scoring import agreement, similarity

    photos = [load_picture(p) for p in find_pictures(picture_folder(workspace, subject))[0]]
    recipes = [read_recipe(path) or {} for path in paths]
    names, _ = choose_names(EncoderSettings(), is_bundled(str(recipes[0].get("base"))))
    clip = _clip(names.clip)
    references = clip.images(photos)
    lines = []
    for path, recipe in zip(paths, recipes, strict=True):
        features = clip.images([load_picture(path)])
        prompt = clip.texts([str(recipe.get("prompt", ""))])
        clip_i, clip_t = similarity(features, references).mean(), agreement(features, prompt)
        lines.append(f"CLIP-I {clip_i.item():.2f}, CLIP-T {clip_t.item():.2f} by {clip.name}")
    return tuple(lines)


@lru_cache(maxsize=1)
def _clip(name: str) -> ClipEncoder:
    from ..evaluation.encoders import load_clip_encoder

    return load_clip_encoder(name)
