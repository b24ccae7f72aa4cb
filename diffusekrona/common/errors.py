"""Mistakes of the user, reported in one line instead of a traceback."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .streams import discard, prepare_streams, use_utf8

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the disk is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "the file is larger than this disk, or the limits of this user, allow",
    errno.EIO: "its disk reports an error",
    errno.ELOOP: "symbolic links that lead in a circle",
}
_IN_THE_WAY = {
    errno.EEXIST: "a file exists where a folder should be",
    errno.ENOTDIR: "a file exists where a folder should be",
    errno.EISDIR: "a folder exists in its place",
}
_LONGEST = 1000  # characters of an error's line


class UserError(Exception):
    """A mistake of the user's. Its text is one line: what is wrong, where, and what to do."""


def reason_of(error: BaseException) -> str:
    """What an error of a library says, for a message: its first line, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: object, length: int = 60) -> str:
    """Text from a file or a library, for a message: on one line, what a terminal would obey written
    as `\\x1b`, and of at most `length` characters: what is over goes from the middle."""
    if isinstance(text, int) and abs(text) >= 10**length:  # Python refuses to write the longest
        return "a number of more digits"
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    end = (length - 1) // 2
    return line if len(line) <= length else f"{line[: length - 1 - end]}…{line[-end:]}"


def not_installed(flag: str, package: str) -> UserError:
    """The error of a flag whose package is missing."""
    return UserError(f"{flag} needs {package}, which is not installed: pip install {package}")


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # safetensors (written in Rust) gives the system's message in a separate class.
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full_line(path: object) -> str:
    return f"no space left on the disk holding {path}: free some room and run again"


@contextmanager
def writing(path: str | os.PathLike[str]) -> Generator[None]:
    """Name `path` in the error when writing it fails because of its disk.

    The system's own error for a failed `write` does not say which file was written, and
    `torch.save` reports a full disk as a RuntimeError about stream positions.

    Raises:
        UserError: the disk holding `path` is full, is read-only or refuses the write, or
            something else exists at `path`.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if _is_disk_full(error) or _has_no_room(path, error):
            raise UserError(_disk_full_line(path)) from error
        reasons = _REFUSED | _IN_THE_WAY
        if isinstance(error, OSError) and error.errno in reasons:
            raise UserError(f"cannot write {path}: {reasons[error.errno]}") from error
        raise
    except Exception as error:  # safetensors' SafetensorError derives from Exception alone
        if _is_disk_full(error):
            raise UserError(_disk_full_line(path)) from error
        raise


def _has_no_room(path: str | os.PathLike[str], error: Exception) -> bool:
    """Whether a RuntimeError while writing `path` can only mean a full disk."""
    if not isinstance(error, RuntimeError):
        return False
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free < 4096
    except OSError:
        return False


def _complain(line: str) -> None:
    with suppress(OSError):  # where nothing can be printed, the exit code remains
        _end_progress_bars()
        print("error: " + shortened(line, _LONGEST), file=sys.stderr, flush=True)


def _end_progress_bars() -> None:
    """Those that the error left open would share its line, and be drawn once more below it."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        bar.close()


def _line_for(error: RuntimeError) -> str | None:
    """The line for a RuntimeError that is not a bug; None for others."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which not every program imports
        return "Out of GPU memory: smaller batches or pictures, or --low_vram, need less."
    if "not enough memory" in str(error) or "can't allocate memory" in str(error):  # torch's
        return "Out of memory: smaller batches or pictures need less."
    if "Symlink loop" in str(error):  # pathlib's as well
        return f"{error}: symbolic links that lead in a circle."
    return None


def _refuse_lost_folder() -> None:
    """End the process where its folder was deleted: libraries would do so in words of their own."""
    try:
        os.getcwd()
    except OSError:
        _complain("The folder that this was started in no longer exists: change to another.")
        sys.exit(2)


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Run an entry point and leave the process with its exit code.

    A `UserError` prints `error: <its line>` on stderr and exits with 2; so do a full disk and a
    file that may not be read or written. Ctrl-C exits with 130, a closed pipe (`… | head`) with
    141, both without a word. Any other exception is a bug and keeps its traceback.

    Raises:
        SystemExit: always.
    """
    use_utf8()
    prepare_streams()
    _refuse_lost_folder()
    # Where it is installed, it warns on import of kernels that only a CPU would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = main()
        sys.stdout.flush()  # a closed pipe shows itself here, not at interpreter exit
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes stdout once more on its way out.
        discard(sys.stdout.fileno())
        sys.exit(141)
    except RuntimeError as error:
        line = _line_for(error)
        if line is None:
            raise
        _complain(line)
        sys.exit(2)
    except MemoryError:
        _complain("Out of memory: smaller batches or pictures need less.")
        sys.exit(2)
    except OSError as error:
        where = error.filename2 or error.filename
        if _is_disk_full(error):
            _complain(_disk_full_line(where or "the output"))
            with suppress(OSError):  # of a stream that is not a file
                discard(sys.stdout.fileno())  # what it still holds cannot be written
        elif error.errno in _REFUSED and (where or error.errno == errno.EIO):
            _complain(f"cannot use {where or 'a file'}: {_REFUSED[error.errno]}")
        else:
            raise
        sys.exit(2)
    sys.exit(code or 0)
