"""YAML that people write, read so that no file can run code, hang or fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

MOST_BYTES = 1 << 20
_MOST_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, a few of which can expand to billions of values."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MOST_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text. Raises yaml.YAMLError or ValueError for what is not one."""
    if len(text) > MOST_BYTES:
        raise ValueError("it is larger than 1 MiB")
    return yaml.load(text, _Loader)


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML, or holds something else.
    """
    try:
        with open(path.expanduser(), "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError("it is larger than 1 MiB")
        content = parse_yaml(raw.decode("utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RuntimeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold settings: write one per line, as name: value.")
    return content
