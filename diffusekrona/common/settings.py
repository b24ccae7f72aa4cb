"""Settings as frozen dataclasses: what a setting is, its limits, and its way to and from YAML.

A program's settings are one dataclass. Its fields are settings, or groups of settings, which are
dataclasses themselves. `command_line` makes flags and `--help` from them, this module makes YAML
files; names are the same in both, and no two groups share one. The metadata of a field (see
`setting`) is enough to make a form from as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import UserError
from .files import write_text
from .yaml_files import read_mapping

LARGEST = 3.4e38  # of floating-point settings: what 32 bits hold
SEEDS = {"minimum": 0, "maximum": 2**63 - 1}  # that torch's generators take

Settings = TypeVar("Settings")


def setting(
    default: Any = MISSING,
    *,
    help: str,
    metavar: str | None = None,
    flag: str | None = None,
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    append: bool = False,
    choices: Collection[str] = (),
    ignore_case: bool = False,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
    may_change_on_resume: bool = False,
    in_file: bool = True,
) -> Any:
    """A field of a settings class.

    Args:
        default: without one the setting is required.
        help: what it does, in the imperative.
        metavar: stands for the value in `--help`.
        flag: name of the flag if it is not the field's, such as "from"; aliases: more names.
        positional: given without a flag.
        append: of a tuple: the flag is repeated for several values, instead of taking them all.
        choices: the values allowed, where the type is not a Literal; ignore_case: in any case.
        minimum, above, maximum, below, multiple_of: limits of a number, or of each of several.
        may_change_on_resume: a resumed run may have another value than the run it continues.
        in_file: whether `run.yaml` holds it; not a secret, nor what is meant for one run only.
    """
    given = locals()
    unset = (None, (), False)
    metadata = {k: v for k, v in given.items() if not any(v is one for one in unset)}
    metadata.pop("default", None)
    metadata |= {"may_change_on_resume": may_change_on_resume, "in_file": in_file}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """A setting, read off its class.

    Attributes:
        group: field that holds the setting's group; "" for a setting of the class itself.
        kind: bool, int, float, str or Path, of one value.
        many: it holds a tuple of them.
        allowed: the values allowed, which may become more; empty for any.
        default: MISSING of a required one.
        metadata: as `setting` was given it.
    """

    name: str
    group: str
    kind: type
    many: bool
    allowed: Collection[str]
    default: Any
    metadata: Mapping[str, Any]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values allowed; () for any."""
        return tuple(self.allowed)

    @property
    def key(self) -> str:
        """Its name in a file, and that of its flag."""
        return self.metadata.get("flag", self.name)

    @property
    def flag(self) -> str:
        """As users write it."""
        return self.key if self.metadata.get("positional") else f"--{self.key}"


@functools.cache
def options_of(cls: type) -> Mapping[str, Option]:
    """Every setting of a settings class and of its groups, by name."""
    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            for name, option in options_of(hint).items():
                found[name] = dataclasses.replace(option, group=field.name)
        else:
            found[field.name] = _option(field, hint)
    return types.MappingProxyType(found)


def _option(field: dataclasses.Field, hint: Any) -> Option:
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    many = get_origin(hint) is tuple
    if many:
        hint = get_args(hint)[0]
    choices: Collection[str] = field.metadata.get("choices", ())  # as it is: it may grow
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    return Option(field.name, "", hint, many, choices, field.default, field.metadata)


def flat(settings: Any) -> dict[str, Any]:
    """Every setting by name, those of the groups included."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        values |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def build(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from values by name; those left out have their defaults."""
    hints, arguments = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = build(hints[field.name], values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return cls(**arguments)


def with_values(settings: Settings, **changes: Any) -> Settings:
    """The same settings but for `changes`, by name."""
    return build(type(settings), flat(settings) | changes)


# --- limits ---------------------------------------------------------------------------------------


def check_limits(settings: Settings) -> Settings:
    """Refuse values outside the limits that the fields state; returns the settings.

    Raises:
        UserError: naming the flag, its value and its limit.
    """
    options = options_of(type(settings))
    for name, value in flat(settings).items():
        option = options[name]
        for one in value if option.many else (value,):
            if one is not None and (limit := broken_limit(option, one)):
                raise UserError(f"{option.flag} must be {limit}, not {one}.")
    return settings


def broken_limit(option: Option, value: Any) -> str | None:
    """The limit that a value of the right type does not keep, in words; None if it keeps all."""
    limits = option.metadata
    if option.choices and value not in option.choices:
        return f"one of {', '.join(option.choices)}"
    if option.kind in (str, Path) and "\0" in str(value):
        return "text without null characters"
    if option.kind not in (int, float):
        return None
    if option.kind is float and not math.isfinite(value):
        return "a finite number"
    if abs(value) > (LARGEST if option.kind is float else 2**63 - 1):
        return "a smaller number"
    if "minimum" in limits and value < limits["minimum"]:
        return f"at least {limits['minimum']}"
    if "above" in limits and value <= limits["above"]:
        return "a positive number" if not limits["above"] else f"above {limits['above']}"
    if "maximum" in limits and value > limits["maximum"]:
        return f"at most {limits['maximum']}"
    if "below" in limits and value >= limits["below"]:
        return f"below {limits['below']}"
    if "multiple_of" in limits and value % limits["multiple_of"]:
        return f"a multiple of {limits['multiple_of']}"
    return None


# --- YAML -----------------------------------------------------------------------------------------


def read_settings_file(cls: type, path: Path) -> dict[str, Any]:
    """The values in a YAML file such as `run.yaml`, by name, each of its setting's type.

    Raises:
        UserError: the file cannot be read; a key that is not a setting, or a value of another type.
    """
    return typed_values(cls, read_mapping(path), str(path))


def typed_values(cls: type, content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Values as YAML has them, by name, as the settings' types. null stands for the default.

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


def did_you_mean(name: str, known: Any) -> str:
    """ " (did you mean seed?)" if a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


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
        return Path(value)
    if not isinstance(value, option.kind):
        raise TypeError
    return value.lower() if option.metadata.get("ignore_case") else value


def kind_in_words(kind: type, many: bool = False) -> str:
    """ "a whole number", or "a list of whole numbers"."""
    words = {
        bool: ("true or false", "true or false"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("text", "texts"),
        Path: ("a path", "paths"),
    }[kind]
    return f"a list of {words[1]}" if many else words[0]


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
    write_text(path, to_yaml(settings))
