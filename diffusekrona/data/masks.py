"""Masks: which part of a picture is to be learned, at the size of its latents.

A mask is a grey picture, white where the loss counts in full and black where it counts least. It
lies beside its picture, as `photo.mask.png` or, as OneTrainer writes it, `photo-masklabel.png`; or
it is the picture's own alpha channel. It is cut, mirrored and scaled exactly as the picture is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from ..common.errors import UserError
from ..common.paths import as_path
from ..common.pictures import fit_picture, load_alpha, load_picture

if TYPE_CHECKING:
    import torch

MASK_ENDINGS = (".mask.png", "-masklabel.png")
_SHAPE_TOLERANCE = 0.02  # of the aspect ratio: masks of other sizes are rounded


def picture_of_mask(name: str) -> str | None:
    """The stem of the picture that a file with this name is the mask of; None for other files."""
    for ending in MASK_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return None


def mask_files(folder: Path) -> list[Path]:
    """The files in `folder` that are masks by their name, sorted."""
    entries = sorted(as_path(folder).iterdir())
    return [entry for entry in entries if picture_of_mask(entry.name) and entry.is_file()]


def find_mask(picture: Path) -> Path | None:
    """The file of a picture's mask; the picture itself if its alpha channel says something."""
    for ending in MASK_ENDINGS:
        beside = picture.with_name(picture.stem + ending)
        if beside.is_file():
            return beside
    alpha = load_alpha(picture)
    return None if alpha is None or alpha.getextrema() == (255, 255) else picture


def load_mask(mask: Path, picture: Path) -> Image.Image:
    """A mask as a grey 8-bit picture.

    Args:
        mask: its file; the picture's own for its alpha channel. Where a mask's file is transparent
            it counts as black.

    Raises:
        UserError: it cannot be read.
    """
    alpha = load_alpha(mask)
    if mask == picture:
        if alpha is None:
            raise UserError(f"{picture} has no alpha channel to use as its mask")
        return alpha
    grey = load_picture(mask).convert("L")
    return grey if alpha is None else ImageChops.multiply(grey, alpha)


def cut_masks(
    mask: Path,
    picture: Path,
    have: tuple[int, int],
    size: tuple[int, int],
    crops: Sequence[tuple[float, float]],
    flip: bool,
    latent_size: tuple[int, int],
) -> list[torch.Tensor]:
    """The mask as each variant of its picture needs it.

    Args:
        have: (height, width) that the picture is read at, in pixels.
        size: (height, width) that it is cut to; `crops` are the places, as `fit_picture` has them.
        flip: a mirrored copy follows each.
        latent_size: (h, w) of the latents.

    Returns:
        (1, h, w) each, from 0 to 1: the mean over the pixels of each cell.

    Raises:
        UserError: the mask cannot be read, or is of another shape than the picture.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    image = load_mask(mask, picture)
    if abs(image.height * have[1] / (image.width * have[0]) - 1) > _SHAPE_TOLERANCE:
        raise UserError(
            f"{mask} has {image.width}×{image.height} pixels, its picture is read at "
            f"{have[1]}×{have[0]}: a mask must have the shape of its picture"
        )
    if (image.height, image.width) != have:
        image = image.resize((have[1], have[0]), Image.Resampling.BILINEAR)
    found: list[torch.Tensor] = []
    for crop in crops:
        cut = np.asarray(fit_picture(image.convert("RGB"), size, crop)[0].convert("L"))
        values = torch.from_numpy(cut.astype("float32") / 255)[None, None]
        cells = F.interpolate(values, latent_size, mode="area")[0]
        found += [cells, cells.flip(-1)] if flip else [cells]
    return found
