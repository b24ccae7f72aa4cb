"""Reading the JSON that this package writes for itself: checked against a schema, or refused in one
line. A disk, a kill or an editor may have damaged any of it."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError, shortened

T = TypeVar("T")
MOST_BYTES = 64 << 20


@functools.cache
def _validator(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def parse_json(text: str | bytes, schema: type[T]) -> T:
    """JSON text as `schema`: a dataclass, `dict[str, int]` or any type that pydantic can check.

    Types are not coerced ("3" is not a number). A dataclass's unknown keys are ignored.

    Raises:
        ValueError: it is not JSON, or not what the schema says; in one line.
    """
    from pydantic import ValidationError

    try:
        return _validator(schema).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_one_line(error)) from None


def _one_line(error: Any) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = shortened(".".join(str(part) for part in first["loc"]), 100)
    reason = shortened(first["msg"], 200)
    return f"{where}: {reason}" if where else reason


def check_value(value: Any, schema: type[T]) -> T:
    """A value that another parser has read, such as YAML's, as `schema`; see `parse_json`.

    Raises:
        ValueError: it is not what the schema says; in one line.
    """
    try:
        text = json.dumps(value)
    except (TypeError, RecursionError) as error:  # a date, say
        raise ValueError(" ".join(str(error).split())) from None
    return parse_json(text, schema)


def read_json(path: Path | str, schema: type[T]) -> T:
    """A JSON file as `schema`; see `parse_json`.

    Raises:
        UserError: the file is missing, cannot be read, or is not as it was written.
    """
    try:
        return parse_json(read_bytes(Path(path)), schema)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error


def read_bytes(path: Path) -> bytes:
    """A file's content, unpacked where it is compressed (.gz).

    Raises:
        OSError, EOFError, zlib.error: it cannot be read; the last two of a damaged .gz alone.
        ValueError: it is larger than MOST_BYTES, or no file: a named pipe would wait for ever.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES / 2**20:g} MiB")
    return content
