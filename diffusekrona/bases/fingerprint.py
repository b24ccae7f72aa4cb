"""Whether a model is still the one that pictures were drawn or scored with."""

from __future__ import annotations

import hashlib
from itertools import islice

from ..common.errors import UserError
from ..common.paths import as_path
from .bundled import BUNDLED

_MOST_FILES = 10_000
_ENDS = 1 << 16  # bytes read of each end of a file: retrained weights differ everywhere


def fingerprint_of(name_or_path: str | None) -> str | None:
    """A short hash of a model's folder or single file: every file's name, size, beginning and end.

    Of a hub's model, whose files the hub vouches for, and of none, None. SDXL takes milliseconds.

    Raises:
        UserError: a folder of more files than any model has, such as a home or the whole disk.
    """
    if name_or_path is None:
        return None
    bundled = BUNDLED / name_or_path
    folder = bundled if bundled.is_dir() else as_path(name_or_path)
    found = list(islice(folder.rglob("*"), _MOST_FILES + 1))
    if len(found) > _MOST_FILES:
        raise UserError(f"{folder} holds thousands of files: give the folder of one model.")
    paths = sorted(path for path in found if path.is_file())
    if folder.is_file():
        paths, folder = [folder], folder.parent
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_ENDS))
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                digest.update(file.read())
    return digest.hexdigest()[:16]
