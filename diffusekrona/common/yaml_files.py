"""YAML that people write, read so that no file can run code, hang or fill the memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, shortened
from .text_files import read_text

MOST_BYTES = 1 << 20
_MOST_DEPTH = 50
_MOST_VALUES = 20_000  # the library takes some 100 µs for each
_LONGEST_NUMBER = 400  # characters; no float has more digits, and longer ones take quadratic time


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, a few of which can expand to billions of values."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        self.depth += 1
        self.values += 1
        if self.depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MOST_DEPTH} deep")
        if self.values > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
        if twice := [key for key, count in keys.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        return super().construct_scalar(node)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: it is not YAML, or larger or deeper than anybody writes it; in one line.
    """
    if len(text) > MOST_BYTES:
        raise ValueError("it is larger than 1 MiB")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(shortened(f"{where}{error.problem}", 300)) from error
    except Exception as error:  # of `!!bool x` a KeyError, of a date 2024-99-99 a ValueError, …
        raise ValueError(shortened(error, 300) or type(error).__name__) from error


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML, or holds something else.
    """
    text = read_text(path, MOST_BYTES)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold settings: write one per line, as name: value.")
    return content
