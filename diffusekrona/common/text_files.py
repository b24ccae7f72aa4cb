"""Text that people write, read so that no file can hang or fill the memory."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError, reason_of
from .paths import as_path

MOST_BYTES = 16 << 20
MOST_METADATA = 256 << 20  # of one file with the captions of many pictures


def read_text(path: Path | str, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        most: the most bytes that are read.

    Raises:
        UserError: it is missing, not a file, larger, not UTF-8, or cannot be read.
    """
    try:
        path = as_path(path)
        if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
            raise ValueError("it is not a file")
        with open(path, "rb") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            raise ValueError(f"it is larger than {most / 2**20:g} MiB")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"Cannot read {path}: it is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except ValueError as error:
        raise UserError(f"Cannot read {path}: {reason_of(error)}.") from error
