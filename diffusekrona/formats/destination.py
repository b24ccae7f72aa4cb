"""Where a conversion may write: never onto its own sources, and only onto what it wrote itself.

Every file that `convert` writes has the metadata entry MARK. A file or folder without it is
somebody's, and is replaced only if that was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..common.errors import UserError
from ..common.own_files import is_own
from ..common.tensor_files import opened
from .targets import TARGETS

MARK = {"converted_by": "diffusekrona"}
_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
_CARD = "README.md"


def place(destination: Path, target: str) -> Path:
    """The file or folder to write: a file gets its usual name where a folder was named."""
    is_whole = target == "merged" or TARGETS[target].is_folder
    if is_whole or (destination.suffix and not destination.is_dir()):
        return destination
    return destination / (TARGETS[target].file_name or f"{destination.name}.safetensors")


def is_folder_target(destination: Path, target: str) -> bool:
    """Whether `target` is written as a folder."""
    if target == "merged":
        return destination.suffix != ".safetensors"
    return TARGETS[target].is_folder


def check_destination(
    destination: Path, sources: Iterable[Path], folder: bool, overwrite: bool
) -> None:
    """Refuse a destination whose writing would lose something.

    Args:
        sources: every file and folder that is read, the base model among them.
        folder: whether a folder is written.
        overwrite: whether a file or folder that `convert` did not write may be replaced.

    Raises:
        UserError: the destination is, contains or is inside a source; it is of the other kind; it
            was not written by `convert`.
    """
    real = Path(os.path.realpath(destination))
    for source in sources:
        other = Path(os.path.realpath(source))
        if real == other or (real.exists() and other.exists() and real.samefile(other)):
            raise UserError(f"{destination} is the source itself: choose another destination.")
        if real in other.parents and folder:
            raise UserError(f"{destination} holds the source {source}: choose another destination.")
        if other in real.parents and (folder or real.exists() or _is_model(other)):
            raise UserError(
                f"{destination} is inside the source {source}: choose another destination."
            )
    if not os.path.lexists(destination):
        return
    if folder != destination.is_dir():
        kind = "a folder" if destination.is_dir() else "a file"
        raise UserError(
            f"{destination} is {kind}, but --to writes a {'folder' if folder else 'file'} here: "
            "name another destination."
        )
    if not (overwrite or is_marked(destination)):
        raise UserError(
            f"{destination} exists and was not written by convert: choose another destination, or "
            "add --overwrite to replace it."
        )


def is_marked(path: Path) -> bool:
    """Whether `convert` wrote a file, or all weights of a folder (true of an empty folder)."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if path.is_dir() and not files:
        return not any(path.iterdir())
    return all(_file_is_marked(file) for file in files)


def check_nothing_else(destination: Path, new: Path) -> None:
    """Refuse to replace a folder that holds files, at any depth, of which `new` has no namesake.

    Raises:
        UserError: naming the first such file.
    """
    if not destination.is_dir():
        return
    for file in sorted(p for p in destination.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = file.relative_to(destination)
        own_card = file.name == _CARD and is_own(file)
        if not (os.path.lexists(new / name) or file.name in _BY_SYSTEMS or own_card):
            raise UserError(
                f"{destination} has other contents ({name}): move them, or choose a new folder."
            )


def check_unedited(destination: Path, new: Path, overwrite: bool) -> None:
    """Refuse to replace a whole model whose other files than weights differ from those of `new`:
    its owner may have edited them.

    Raises:
        UserError: naming the first such file.
    """
    for file in sorted(destination.rglob("*")) if destination.is_dir() and not overwrite else ():
        name = file.relative_to(destination)
        if file.suffix == ".safetensors" or not (file.is_file() and (new / name).is_file()):
            continue
        if file.read_bytes() != (new / name).read_bytes():
            raise UserError(
                f"{destination / name} differs from the base's: choose another destination, or "
                "add --overwrite to replace it."
            )


def _is_model(path: Path) -> bool:
    return (path / "model_index.json").is_file()


def _file_is_marked(file: Path) -> bool:
    try:
        with opened(file) as content:
            return MARK.items() <= (content.metadata() or {}).items()
    except UserError:
        return False
