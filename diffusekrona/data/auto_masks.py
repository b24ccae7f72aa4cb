"""Masks made by a model of rembg, for pictures that have none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..common.errors import UserError, not_installed, reason_of
from ..common.files import replace_whole
from ..common.pictures import load_picture
from .folder import find_pictures
from .masks import MASK_ENDINGS, find_mask


def make_masks(folders: Iterable[Path], name: str, progress: bool = True) -> list[Path]:
    """Write `photo.mask.png` for each picture without a mask, white where the subject is.

    Args:
        name: of a model of rembg, which it downloads once, such as "isnet-general-use".

    Returns:
        The files that were written.

    Raises:
        UserError: rembg is not installed or does not load the model, its mask has another size
            than the picture, or a folder has no pictures.
    """
    pictures = [path for folder in folders for path in find_pictures(folder)[0]]
    without = [path for path in pictures if find_mask(path) is None]
    if not without:
        return []
    remove, session = _load(name)
    written = []
    for path in tqdm(without, desc="masks", unit="picture", disable=not progress):
        target = path.with_name(path.stem + MASK_ENDINGS[0])
        if target.exists():  # of photo.jpg, and this is photo.png
            continue
        picture = load_picture(path)
        mask = remove(picture, session=session, only_mask=True)
        if mask.size != picture.size:  # a model that makes several masks, one below the other
            raise UserError(f"--make_masks {name}: this model makes more than one mask per picture")
        with replace_whole(target) as temporary:
            mask.convert("L").save(temporary, "PNG")
        written.append(target)
    return written


def _load(name: str) -> tuple[Any, Any]:
    """rembg's function, and a session with a model of it."""
    try:
        from rembg import new_session, remove
    except (ImportError, SystemExit) as error:  # it exits where onnxruntime is missing
        raise not_installed("--make_masks", "rembg[cpu]") from error
    try:
        return remove, new_session(name)
    # No network, no model of that name, or half a file: onnxruntime has errors of its own kinds.
    except Exception as error:
        raise UserError(f"--make_masks {name}: rembg cannot load it: {reason_of(error)}") from error
