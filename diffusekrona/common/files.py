"""Writing files and folders so that a reader finds the old one or the new one whole, never a piece.

What is being written is in a hidden working folder beside its destination and is renamed into
place at the end. The process that writes holds a lock on that folder, which the system releases
however the process ends; so a later run can distinguish a dead run's leftovers
from those of a live one, and removes only the former (`clean_leftovers`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Generator, Iterable
from pathlib import Path

from .errors import UserError, writing

try:
    import fcntl
except ImportError:  # Windows: nothing there proves that a run is dead, so leftovers stay
    fcntl = None

_PREFIX = ".diffusekrona-partial-"
_cleaned: set[str] = set()


@contextlib.contextmanager
def replace_whole(path: Path | str) -> Generator[Path]:
    """Yield a path to write a file to; when the block ends well, the file takes `path`'s place.

    The file is flushed to the disk before the rename, so not even a power cut leaves a half-written
    file under the final name. When the block fails, nothing is left behind.

    Raises:
        UserError: the disk is full or refuses the write, or `path` is a device or a pipe; `path`
            is as it was.
    """
    refuse_special(Path(path))
    path = _followed(Path(path))
    with writing(path), _working_folder(path.parent) as work:
        yield work / "new" / path.name
        _flush(work / "new" / path.name)
        os.replace(work / "new" / path.name, path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def new_file(path: Path | str) -> Generator[tuple[Path, list[Path]]]:
    """As `replace_whole`, but never in the place of another file: should `path` be taken, the file
    is called `name-2`, `name-3` … Any number of processes may write into one folder.

    Yields:
        The path to write to, and a list that holds the final path once the block has ended.
    """
    path, final = Path(path), []
    with writing(path), _working_folder(path.parent) as work:
        yield work / "new" / path.name, final
        _flush(work / "new" / path.name)
        final.append(_claim(path))
        os.replace(work / "new" / path.name, final[0])
        _flush_folder(path.parent)


def _claim(path: Path) -> Path:
    """Make an empty file at `path`, or at the next name that is free; its path."""
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return name
    raise AssertionError("unreachable")


@contextlib.contextmanager
def replace_folder(destination: Path | str) -> Generator[Path]:
    """Yield an empty folder; when the block ends well, it takes `destination`'s place.

    A folder that is there already is moved aside first. A process killed between the two renames
    leaves it there, and `clean_leftovers` moves it back.

    Raises:
        UserError: the disk is full or refuses the write; `destination` is as it was.
    """
    refuse_special(Path(destination))
    destination = _followed(Path(os.path.abspath(destination)))
    with writing(destination), _working_folder(destination.parent) as work:
        new, old = work / "new" / destination.name, work / "old" / destination.name
        new.mkdir()
        yield new
        for file in (p for p in new.rglob("*") if p.is_file()):
            _flush(file)
        if not os.path.lexists(destination):
            os.replace(new, destination)
        else:
            old.parent.mkdir()
            os.replace(destination, old)
            try:
                os.replace(new, destination)
            except OSError:
                os.replace(old, destination)
                raise
        _flush_folder(destination.parent)


def _followed(path: Path) -> Path:
    """Where a symbolic link leads, such as to a larger disk: that is replaced, and the link stays.

    Raises:
        UserError: it leads in a circle.
    """
    if not path.is_symlink():
        return path
    with writing(path), contextlib.suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


def refuse_special(path: Path) -> None:
    """Raise UserError for what is neither a file nor a folder, such as /dev/null: the superuser may
    rename or replace it, and the whole machine would miss it."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or nothing that can be known
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a device or a pipe, not a file: choose another name.")


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replace_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path | str, content: bytes) -> None:
    """As `write_text`."""
    with replace_whole(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def temporary_folder() -> Generator[Path]:
    """An empty folder among the system's temporary ones, removed at the end of the block, or by the
    next process that asks for one where this one is killed."""
    with _working_folder(Path(tempfile.gettempdir())) as work:
        yield work / "new"


def clean_leftovers(folder: Path | str) -> None:
    """Remove what killed runs of this user left in `folder`, and undo a replacement cut in half.

    Folders of other names, of other users and of live processes are not touched.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [e for e in entries if e.name.startswith(_PREFIX) and _is_own(e)]
        for entry in found:
            _remove_if_dead(Path(entry.path))


def _is_own(entry: os.DirEntry[str]) -> bool:
    own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
    return own and entry.is_dir(follow_symlinks=False)


def _remove_if_dead(work: Path) -> None:
    with contextlib.suppress(OSError):  # locked by a live process, or removed in the meantime
        handle = _lock(work)
        try:
            for kept in (work / "old").iterdir() if (work / "old").is_dir() else ():
                if not os.path.lexists(work.parent / kept.name):
                    os.replace(kept, work.parent / kept.name)
            shutil.rmtree(work)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _working_folder(parent: Path) -> Generator[Path]:
    """A new hidden folder in `parent`, with a folder "new" in it, locked while the block runs."""
    parent.mkdir(parents=True, exist_ok=True)
    if os.path.abspath(parent) not in _cleaned:  # once per process, not before every picture
        _cleaned.add(os.path.abspath(parent))
        clean_leftovers(parent)
    work, handle = _make_locked(parent)
    try:
        (work / "new").mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _make_locked(parent: Path) -> tuple[Path, int | None]:
    while True:
        work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        if fcntl is None:
            return work, None
        try:
            handle = _lock(work)
        except BlockingIOError:
            continue  # another run is removing it: it was not locked yet
        except FileNotFoundError:
            continue
        except OSError:
            return work, None  # a file system without locks, where none are removed either
        if work.is_dir():
            return work, handle
        os.close(handle)


def _lock(folder: Path) -> int:
    """An open handle that holds the folder's lock. Raises OSError, the handle closed."""
    assert fcntl is not None  # the callers check
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _flush(file: Path) -> None:
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class TimedFile(io.BufferedReader):
    """A file that can be read for `seconds` of CPU time, which bounds a decoder that reads piece by
    piece whatever makes it slow: ASCII pixels, a comment, scans, thousands of segments.

    Raises:
        UserError: on reading, when the time is over; gives the reason alone, without the path.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(io.FileIO(path))
        self._seconds, self._end = seconds, time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._end:
            raise UserError(f"takes over {self._seconds:g} seconds to decode; save it again")
        return super().read(size)


def slug(text: str, length: int = 40) -> str:
    """A piece of a file name that is legal on every system, from any text.

    Args:
        length: the most characters; at most 80, so that a name stays below the 255 bytes that file
            systems allow (characters outside the basic plane, of 4 bytes, are cut earlier).
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
    cut = "-".join(words)[:length].encode()[: 3 * length].decode(errors="ignore")
    return cut.strip("-_") or "picture"


def slugs(texts: Iterable[str], length: int = 40) -> list[str]:
    """As `slug`, of several texts: where two would be equal, the later one ends in -2, -3 …"""
    names: list[str] = []
    for text in texts:
        first = slug(text, length)
        numbered = (f"{first}-{n}" if n > 1 else first for n in itertools.count(1))
        names.append(next(name for name in numbered if name not in names))
    return names
