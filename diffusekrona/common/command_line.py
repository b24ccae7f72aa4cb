"""Flags and `--help` from settings classes, by tyro."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from tyro import _errors as errors  # its hook is the only way to an error of one line
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from .errors import UserError
from .paths import as_path
from .settings import (
    Option,
    Settings,
    check_limits,
    did_you_mean,
    kind_in_words,
    options_of,
    with_values,
)
from .settings_files import read_settings_file

_CONFIG = Option(
    "config", "", Path, False, (), None,
    {"help": "Read settings from a YAML file, such as a run's run.yaml. Flags take precedence.",
     "metavar": "FILE"},
)  # fmt: skip


def parse(
    cls: type[Settings],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """A program's settings, from its command line and the YAML file that `--config` names.

    Args:
        cls: a settings class, as `common.settings` describes them.
        argv: without the program's name; by default this process's.
        description: what `--help` says of the program.
        defaults: by name, instead of the classes' own.

    Raises:
        UserError: a flag that does not exist, a value of the wrong type or outside its limits.
        SystemExit: after `--help`, with code 0.
    """
    argv = [str(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    config = _value_of("--config", argv)
    values = dict(defaults or {})
    if config is not None:
        values |= read_settings_file(cls, as_path(config))
    with errors.on_parse_error(functools.partial(_refuse, cls, argv)):
        settings = tyro.cli(
            cls,
            args=argv,
            prog=prog,
            description=description,
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_registry(cls, values),
        )
    # A repeated flag would be added to what the file has, so tyro does not know of it.
    kept = {
        name: values[name]
        for name, option in options_of(cls).items()
        if option.metadata.get("append") and name in values
        if _value_of(option.flag, argv) is None
    }
    return check_limits(with_values(settings, **kept))


def arguments_of(cls: type, values: Mapping[str, Any]) -> list[str]:
    """The command line that gives a program these values by name: `parse` reads them off it.

    None and an empty tuple, which no flag can give, are left out, as is False of a `no_` switch.
    """
    options = options_of(cls)
    given = {name: value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in _arguments(options[name], value)]


def _arguments(option: Option, value: Any) -> list[str]:
    values = value if option.many else (value,)
    if option.metadata.get("positional"):
        return [str(one) for one in values]
    if option.kind is bool:
        off = [] if option.name.startswith("no_") else [f"--no_{option.key}"]
        return [option.flag] if value else off
    if option.metadata.get("append") or not option.many:
        return [f"{option.flag}={one}" for one in values]
    return [option.flag, *map(str, values)] if values else []


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value that a command line gives to a flag, or None."""
    found = None
    for argument, following in zip(argv, [*argv, None][1:], strict=True):
        if _flag_in(argument) == flag:
            _, equals, value = argument.partition("=")
            found = value if equals else following
    return found


def _flag_in(argument: str) -> str:
    """The flag of `--flag` or `--flag=value`; tyro takes hyphens for the underscores in it."""
    flag = argument.partition("=")[0]
    return flag[:2] + flag[2:].replace("-", "_")


def _registry(cls: type, values: Mapping[str, Any]) -> ConstructorRegistry:
    """How tyro reads `cls`: `values` are the defaults, help and choices come from the metadata."""
    registry = ConstructorRegistry()
    options = {**options_of(cls), "config": _CONFIG}

    def field(option: Option) -> StructFieldSpec:
        default = values.get(option.name, option.default)
        if option.metadata.get("append"):
            default = ()
        missing = default is dataclasses.MISSING
        default = MISSING_NONPROP if missing else default
        return StructFieldSpec(option.name, _annotated(option, default), default)

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind: Any = info.type  # whatever an annotation may be
        if not (isinstance(kind, type) and dataclasses.is_dataclass(info.type)):
            return None
        hints = get_type_hints(info.type)
        members = [
            StructFieldSpec(f.name, hints[f.name], MISSING_NONPROP)
            if dataclasses.is_dataclass(hints[f.name])
            else field(options[f.name])
            for f in dataclasses.fields(info.type)
        ]
        if info.type is not cls:
            return StructConstructorSpec(info.type, tuple(members))

        def instantiate(config: Path | None = None, **arguments: Any) -> Any:
            return cls(**arguments)

        return StructConstructorSpec(instantiate, (*members, field(_CONFIG)))

    return registry


def _annotated(option: Option, default: Any) -> Any:
    """The type that makes tyro's flag for an option."""
    hint = "required" if default is MISSING_NONPROP else _shown(default)
    look = tyro.conf.arg(
        name=option.metadata.get("flag"),
        aliases=option.metadata.get("aliases"),
        help=option.metadata["help"],
        help_behavior_hint=f"({hint})" if hint else "",
    )
    if option.kind is bool:
        if option.name.startswith("no_"):
            return Annotated[bool, look, tyro.conf.FlagCreatePairsOff]
        return Annotated[bool, look]
    reader: Any = Annotated[Any, _reader(option)]
    if option.metadata.get("append"):
        return Annotated[tuple[reader, ...], look, tyro.conf.UseAppendAction]
    if option.metadata.get("positional"):
        return Annotated[reader, look, tyro.conf.Positional]
    return Annotated[reader, look]


def _shown(default: Any) -> str:
    if default is None or default is False or default == ():
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"default: {text}"


def _reader(option: Option) -> PrimitiveConstructorSpec[Any]:
    """How the value of a flag is read, and shown in `--help`."""
    kinds = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    metavar = option.metadata.get("metavar") or kinds[option.kind]
    if option.choices and "metavar" not in option.metadata:
        metavar = "{" + ",".join(option.choices) + "}"
    several = option.many and not option.metadata.get("append")

    def one(text: str) -> Any:
        text = text.lower() if option.metadata.get("ignore_case") else text
        try:
            return as_path(text) if option.kind is Path else option.kind(text)
        except ValueError:
            words = kind_in_words(option.kind)
            raise UserError(f"{option.flag} must be {words}, not {text!r}.") from None

    def read(texts: list[str]) -> Any:
        if several and not texts:
            raise UserError(f"{option.flag} needs a value.")
        return tuple(one(text) for text in texts) if several else one(texts[0])

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{metavar} [{metavar} …]" if several else metavar,
        instance_from_str=read,
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(value)],
    )


def _refuse(cls: type, argv: Sequence[str], event: errors.ParseErrorEvent) -> None:
    """Raise UserError for what tyro could not parse, in one line."""
    options = options_of(cls).values()
    known = ["--help", "--config", *(option.flag for option in options)]
    known += [alias for option in options for alias in option.metadata.get("aliases", ())]
    unknown: Sequence[str] = ()
    if isinstance(event, errors.UnrecognizedArgs):
        unknown = event.tokens
    elif isinstance(event, errors.MissingArgs):
        unknown = event.unrecognized_tokens
    elif isinstance(event, errors.BadValue) and not _flag_of(event.argument).startswith("-"):
        unknown = [a for a in argv if a.startswith("-") and _flag_in(a) not in known]
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            before = itertools.takewhile(lambda word: word != unknown[0], argv)
            raise UserError(
                f"{flag!r} belongs to no flag: put text with spaces into quotes"
                f"{_repeated(cls, list(before))}."
            )
        path = "/" in flag or os.path.lexists(flag)
        instead = f": write ./{flag} if it is a path" if path else did_you_mean(flag, known)
        raise UserError(f"{flag} is not a flag of {event.prog}{instead}.")
    if isinstance(event, errors.MissingArgs):
        flags = [_flag_of(argument.arg) for argument in event.missing_arguments]
        raise UserError(f"Required: {', '.join(flags)}.")
    if isinstance(event, errors.BadValue):
        raise UserError(f"{_flag_of(event.argument)} needs a value.")
    if isinstance(event, errors.InstantiationFailure):
        raise UserError(event.message)


def _repeated(cls: type, before: Sequence[str]) -> str:
    """That the last flag of `before` is given once for each value, where it is such a flag."""
    last = next((_flag_in(word) for word in reversed(before) if word[:1] == "-"), "")
    once_each = {o.flag for o in options_of(cls).values() if o.metadata.get("append")}
    return f", and repeat {last} for each further value" if last in once_each else ""


def _flag_of(argument: Any) -> str:
    """The flag, or a positional's name without its group's."""
    names = argument.lowered.name_or_flags  # the aliases first
    name = names[-1] if names else "a value"
    return name if name.startswith("-") else name.rpartition(".")[2]
