"""Folders that appear whole or not at all, and the settings in them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import UserError, writing


@contextmanager
def replace_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `destination`; when the block ends well, it takes its place.

    A folder that is there already is replaced only if everything in it is written anew, so that a
    mistyped destination loses nothing.

    Raises:
        UserError: the destination holds other things, or the disk refuses.
    """
    destination = Path(os.path.abspath(destination))
    if destination.is_file():
        raise UserError(f"{destination} is a file: name a folder to write.")
    temporary = None
    try:
        with writing(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(
                tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent)
            )
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            _take_place(temporary, destination)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, destination: Path) -> None:
    if not destination.exists():
        os.replace(temporary, destination)
        return
    strange = {p.name for p in destination.iterdir()} - {p.name for p in temporary.iterdir()}
    if strange:
        raise UserError(
            f"{destination} holds other things ({sorted(strange)[0]}): name a new folder."
        )
    old = temporary.with_name(temporary.name + ".old")
    os.replace(destination, old)
    try:
        os.replace(temporary, destination)
    except OSError:
        os.replace(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of settings. Raises UserError for one that cannot be read or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings.")
    return content
