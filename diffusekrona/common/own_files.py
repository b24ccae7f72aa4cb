"""Results under names that somebody's own file may have: one of ours is replaced, any other is
renamed and stays.

Which is which a mark says, that the file itself holds: a page its footer, a table in Markdown a
comment with the digest of what is above it (so a card that its owner has edited is theirs), JSON
and YAML and pictures an entry, an adapter its metadata. CSV has no place for one: a table with the
same columns is ours.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from .errors import UserError
from .files import refuse_special, write_bytes

log = logging.getLogger("diffusekrona")

SOFTWARE = {"Software": "diffusekrona"}  # the text entry of charts and grids
_MARKS = {
    ".html": re.compile(rb"<footer>DiffuseKronA [^<]*</footer>\s*</body>\s*</html>\s*\Z"),
    ".json": re.compile(rb'\A\{\s*"written_by": "diffusekrona"'),
    ".yaml": re.compile(rb"\A# Written by diffusekrona\b"),
    ".png": re.compile(rb"\A\x89PNG.{,64}tEXtSoftware\0diffusekrona", re.DOTALL),
    ".safetensors": re.compile(rb'\A.{8}\s*\{.*"diffusekrona": ?"', re.DOTALL),
    # Any line: a log whose first one is damaged is still ours.
    ".jsonl": re.compile(rb'\A\Z|^\{"step": ', re.MULTILINE),
}
_DIGEST = re.compile(rb"\n<!-- Written by diffusekrona: ([0-9a-f]{16}) -->\n\Z")
_ENDS = 1 << 16  # bytes; an adapter's metadata is within its first ones


def write_result(path: Path | str, content: str | bytes) -> Path:
    """Write a result atomically, with our mark; what is there and lacks it is set aside.

    Args:
        content: a page, a picture, a JSON object; Markdown, YAML or CSV of the usual suffix.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    path = Path(path)
    # Names of files may hold bytes that are not Unicode.
    raw = content.encode(errors="replace") if isinstance(content, str) else content
    if raw.startswith(b"{"):
        comma = b"" if re.match(rb"\{\s*\}", raw) else b","  # an object may be empty
        raw = re.sub(rb"\A\{(\s*)", rb'{\1"written_by": "diffusekrona"%b\1' % comma, raw)
    elif path.suffix == ".yaml":
        raw = b"# Written by diffusekrona\n" + raw
    elif path.suffix == ".md":
        raw = raw.rstrip() + b"\n"
        raw += b"\n<!-- Written by diffusekrona: %b -->\n" % _digest(raw)
    keep_foreign(path, raw)
    write_bytes(path, raw)
    return path


def check_names(*paths: Path | None) -> None:
    """See that names that a user gave for results can be those of files, before any work.

    Raises:
        UserError: a folder, which nobody wants to see renamed; a device or a pipe.
    """
    for path in filter(None, paths):
        refuse_special(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the name of a file, in it or elsewhere.")


def keep_foreign(path: Path, new: bytes = b"") -> None:
    """Set aside what is at `path`, unless it is ours (or there is nothing).

    Args:
        new: what shall take its place, where only the likeness to that shows whose it is.
    """
    if os.path.lexists(path) and not is_own(path, new):
        set_aside(path)


def is_own(path: Path, new: bytes = b"") -> bool:
    """Whether we wrote a file, by its mark; see `keep_foreign`."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_ENDS)
            file.seek(max(0, path.stat().st_size - _ENDS))
            tail = file.read()
    except OSError:
        return False
    if path.suffix == ".csv":
        return head.split(b"\n")[0] == new.split(b"\n")[0]
    if path.suffix == ".md":
        found = _DIGEST.search(tail)
        return bool(found) and found[1] == _digest(path.read_bytes()[: -len(found[0])])
    known = _MARKS.get(path.suffix)
    marks = [known] if known else _MARKS.values()  # a page may be called .htm, or page
    return any(mark.search(part) for mark in marks for part in (head, tail))


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `<name>.set-aside`, or the next name that is free; returns it.

    Raises:
        UserError: a device or a pipe, or the system refuses.
    """
    refuse_special(path)
    number, aside = 1, path.with_name(f"{path.name}.set-aside")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.set-aside-{number}")
    try:
        os.rename(path, aside)
    except OSError as error:  # a mount point, say
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{path} was not written by DiffuseKronA, so it is not replaced, and it cannot be "
            f"renamed: {reason}"
        ) from error
    log.warning("%s is kept as %s", path, aside.name)
    return aside


def without_mark(markdown: str) -> str:
    """The text of a Markdown file of ours without the comment at its end."""
    return _DIGEST.sub(b"", markdown.encode()).decode()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()
