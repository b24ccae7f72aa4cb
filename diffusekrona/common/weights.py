"""`[NAME=]PATH[:WEIGHT]` and `NAME=WEIGHT`, as several programs' flags take them."""

from __future__ import annotations

import math

from .errors import UserError
from .paths import as_path
from .settings import LARGEST


def is_weight(number: float) -> bool:
    """Whether a number is one that 32 bits hold: neither NaN nor infinite nor 1e39."""
    return math.isfinite(number) and abs(number) <= LARGEST


def split_name(text: str) -> tuple[str, str]:
    """`[NAME=]PATH` to the name, "" without one, and the path, which may hold an equals sign."""
    name, sign, rest = text.partition("=")
    named = sign and "/" not in name and not as_path(text).exists()
    return (name, rest) if named else ("", text)


def split_weight(text: str) -> tuple[str, float]:
    """`PATH[:WEIGHT]` to the path and its weight, by default 1. Raises as `given_weight` does."""
    path, weight = given_weight(text)
    return path, 1.0 if weight is None else weight


def given_weight(text: str) -> tuple[str, float | None]:
    """`PATH[:WEIGHT]` to the path and the weight that is written behind it, None if none is.

    Paths with colons survive: what exists as written is a path, and so is what does not end in a
    colon and a number.

    Raises:
        UserError: a weight that is not a finite number of 32 bits.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or as_path(text).exists():
        return text, None
    try:
        weight = float(tail)
    except ValueError:
        return text, None
    if not is_weight(weight):
        raise UserError(f"{text}: the weight must be a number, finite and below {LARGEST:g}.")
    return head, weight
