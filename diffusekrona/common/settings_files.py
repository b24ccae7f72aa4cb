"""Settings as YAML files: `--config run.yaml` is the same as the flags that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .own_files import write_result
from .paths import as_path
from .settings import Option, did_you_mean, flat, kind_in_words, options_of
from .yaml_files import read_mapping


def read_settings_file(cls: type, path: Path) -> dict[str, Any]:
    """The values in a YAML file such as `run.yaml`, by name, each of its setting's type.

    Raises:
        UserError: the file cannot be read; a key that is not a setting, or a value of another type.
    """
    return typed_values(cls, read_mapping(path), str(path))


def typed_values(cls: type, content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Values as YAML has them, by name, as the settings' types. null means the default.

    Args:
        where: they come from, for the message.

    Raises:
        UserError: a key that is not a setting, or a value of another type.
    """
    options = {option.key: option for option in options_of(cls).values()}
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in options:
            raise UserError(
                f"{where}: {name!r} is not a setting{did_you_mean(str(name), options)}."
            )
        if value is not None:
            try:
                values[options[name].name] = _typed(options[name], value)
            except (TypeError, ValueError, OverflowError):
                wanted = kind_in_words(options[name].kind, options[name].many)
                shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
                raise UserError(f"{where}: {name} must be {wanted}, not {shown}.") from None
    return values


def _typed(option: Option, value: Any) -> Any:
    if not option.many:
        return _typed_one(option, value)
    if not isinstance(value, list):
        raise TypeError
    return tuple(_typed_one(option, one) for one in value)


def _typed_one(option: Option, value: Any) -> Any:
    if value is False and "no" in option.choices:
        return "no"  # which is how YAML reads the bare word
    if option.kind is bool or isinstance(value, bool):
        if option.kind is not type(value):
            raise TypeError
        return value
    if option.kind is float and isinstance(value, int | float | str):
        return float(value)  # YAML 1.1 reads 5e-3 as text
    if option.kind is Path and isinstance(value, str):
        return as_path(value)
    if not isinstance(value, option.kind):
        raise TypeError
    return value.lower() if option.metadata.get("ignore_case") else value


def to_yaml(settings: Any) -> str:
    """The settings as YAML, group by group, without those that are not meant for a file."""
    options, lines, group = options_of(type(settings)), [], ""
    for name, value in flat(settings).items():
        option = options[name]
        if value is None or not option.metadata.get("in_file", True):
            continue
        if option.group != group:
            group = option.group
            lines.append(f"\n# {group}\n" if lines else f"# {group}\n")
        line = {option.key: _plain(value)}
        lines.append(yaml.safe_dump(line, allow_unicode=True, width=100))
    return "".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def write_settings_file(settings: Any, path: Path) -> None:
    """Write what `read_settings_file` reads. Raises UserError where the disk refuses."""
    write_result(path, to_yaml(settings))
