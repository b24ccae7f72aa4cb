"""Settings as frozen dataclasses: what a setting is, and its limits.

A program's settings are one dataclass. Its fields are settings, or groups of settings, which are
dataclasses themselves. `command_line` makes flags and `--help` from them, `settings_files` YAML;
names are the same in both, and no two groups share one. The metadata of a field (see `setting`) is
enough to make a form from as well.
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

from .errors import UserError, shortened

LARGEST = 3.4e38  # of floating-point settings: what 32 bits hold
SEEDS: dict[str, Any] = {"minimum": 0, "maximum": 2**63 - 1}  # that torch's generators take
COUNTS: dict[str, Any] = {"minimum": 1, "maximum": 65_536}  # of what is in memory at one time
SIDES: dict[str, Any] = {"minimum": 1, "maximum": 16_384}  # of pictures, in pixels

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
        metavar: placeholder of the value in `--help`.
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


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
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
                raise UserError(f"{option.flag} must be {limit}, not {shortened(one)}.")
    return settings


def broken_limit(option: Option, value: Any) -> str | None:
    """A description of the limit that a value violates; None if it is within all limits."""
    limits = option.metadata
    if option.choices and value not in option.choices:
        return f"one of {', '.join(option.choices)}"
    if option.kind in (str, Path) and "\0" in str(value):
        return "text without null characters"
    if option.kind is str and not _is_unicode(value):
        return "valid Unicode text"
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


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: a terminal's stray bytes arrive as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- words ----------------------------------------------------------------------------------------


def did_you_mean(name: str, known: Any) -> str:
    """ " (did you mean seed?)" if a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


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
