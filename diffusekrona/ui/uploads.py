"""Dropped pictures and edited captions, on their way into data/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError, writing
from ..common.files import new_file, replace_whole, slug, write_text
from ..common.own_files import set_aside
from ..common.pictures import content_key, why_not
from ..data.caption_files import read_captions
from ..data.folder import find_pictures
from ..data.masks import mask_files, picture_of_mask
from .places import Workspace, inside, safe_name, unreadable

MOST_BYTES = 40_000_000  # of one file
LONGEST_CAPTION = 2000  # characters
_NO_CAPTION = "\ue000"  # a character that no caption has


def picture_folder(workspace: Workspace, subject: str) -> Path:
    """The folder of a subject's pictures. Raises UserError for a name that leads out of data/."""
    return inside(workspace, Path("data") / subject / "input", ("data",))


def add_pictures(
    workspace: Workspace, subject: str, files: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """Copy uploaded pictures into data/SUBJECT/input.

    Each is decoded before it lies there; its name is made of its words, and a picture that has it
    already stays. A mask takes the place of the one that its picture had, which is renamed.

    Returns:
        One line for each file that was refused, and one for each mask that was renamed.

    Raises:
        UserError: a subject without letters or digits; the disk refuses.
    """
    if wrong := unreadable(workspace, "data"):
        raise UserError(wrong)
    known = os.listdir(workspace.data) if os.path.isdir(workspace.data) else []
    folder = picture_folder(workspace, subject if subject in known else safe_name(subject))
    refused, renamed = [], []
    for file in files:
        reason = "larger than 40 MB" if file.stat().st_size > MOST_BYTES else why_not(file)
        if reason:
            refused.append(f"{file.name}: {reason}")
            continue
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / _safe_file(file.name)
        if stem := picture_of_mask(path.name):
            with replace_whole(path) as temporary:
                shutil.copyfile(file, temporary)
                renamed += [_set_mask_aside(old) for old in _other_masks(folder, stem, file)]
        else:
            with new_file(path) as (temporary, _):
                shutil.copyfile(file, temporary)
    return refused, renamed


def _other_masks(folder: Path, stem: str, new: Path) -> list[Path]:
    """The masks that a picture has, but for one that is the same as the new one."""
    own = [mask for mask in mask_files(folder) if picture_of_mask(mask.name) == stem]
    return [mask for mask in own if content_key(mask) != content_key(new)]


def _set_mask_aside(mask: Path) -> str:
    return f"The mask {mask.name} was replaced and is kept as {set_aside(mask).name}."


def _safe_file(name: str) -> str:
    """A file name of words and its ending; a mask stays the mask of its picture."""
    stem = picture_of_mask(name) or Path(name).stem
    words = slug(stem) if any(map(str.isalnum, stem)) else "picture"
    return words + name[len(stem) :].lower()


def masks(workspace: Workspace, subject: str) -> dict[str, str]:
    """The name of each picture's mask file, by the picture's name without its ending."""
    folder = picture_folder(workspace, subject)
    try:
        if not folder.is_dir():
            return {}
        return {picture_of_mask(file.name) or "": file.name for file in mask_files(folder)}
    except OSError as error:
        raise _unreadable(workspace, folder, error) from error


def _unreadable(workspace: Workspace, folder: Path, error: OSError) -> UserError:
    return UserError(f"{workspace.relative(folder)} cannot be read: {error.strerror}.")


def captions(workspace: Workspace, subject: str) -> list[tuple[str, str]]:
    """(file name, caption) of each usable picture of a subject; none for a new subject.

    Raises:
        UserError: the folder cannot be read, or holds no usable picture.
    """
    folder = picture_folder(workspace, subject)
    try:
        if not folder.is_dir():
            return []
    except OSError as error:
        raise _unreadable(workspace, folder, error) from error
    pictures, _ = find_pictures(folder)
    found = read_captions(folder, pictures, _NO_CAPTION)
    own = ("" if text == _NO_CAPTION else text for text in found)
    return [(path.name, text) for path, text in zip(pictures, own, strict=True)]


def save_captions(workspace: Workspace, subject: str, rows: Sequence[tuple[str, str]]) -> None:
    """Write captions beside their pictures, as picture.txt; an empty one removes that file.

    Raises:
        UserError: a picture that is not the subject's; a caption that is too long; a disk that
            refuses.
    """
    folder = picture_folder(workspace, subject)
    there = {path.name for path in find_pictures(folder)[0]}
    for name, text in rows:
        if name not in there:
            raise UserError(f"{name} is not a picture of {subject}.")
        if len(text) > LONGEST_CAPTION:
            raise UserError(f"{name}: a caption has at most {LONGEST_CAPTION} characters.")
    for name, text in rows:
        beside = (folder / name).with_suffix(".txt")
        if beside.is_symlink():
            raise UserError(f"{beside.name} is a link: remove it first.")
        line = " ".join(text.split())
        if line:
            write_text(beside, line + "\n")
        elif beside.exists():
            with writing(beside):
                os.unlink(beside)
