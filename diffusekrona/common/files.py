"""Writing files so that a reader finds the old one or the new one whole; names for files."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from .errors import writing


@contextlib.contextmanager
def replace_whole(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes `path`'s place.

    The temporary file is flushed to the disk before the rename, so not even a power cut leaves a
    half-written file under the final name. When the block fails, nothing is left behind.

    Raises:
        UserError: the disk is full or refuses the write; `path` is as it was.
    """
    path = Path(path)
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=f".{path.name}.", suffix=".partial", dir=path.parent
            )
            os.close(handle)
            temporary = Path(name)
            yield temporary
            _put_in_place(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide the result from others
    os.replace(temporary, path)
    _flush_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replace_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def slug(text: str, length: int = 40) -> str:
    """A piece of a file name that is legal on every system, from any text."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
    return "-".join(words)[:length].strip("-_") or "picture"
