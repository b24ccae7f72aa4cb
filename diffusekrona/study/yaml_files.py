"""Studies as YAML files that users can copy and change; `grid.py` shows what one looks like."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, FiniteFloat

from ..common.errors import UserError, shortened
from ..common.json_files import check_value
from ..common.text_files import read_text
from ..common.yaml_files import MOST_BYTES, parse_yaml
from .grid import Arm, Axis, Study, Value, label_of, yaml_value

_NAME = re.compile(r"\w[\w .,()+-]{0,79}")  # it becomes a folder's

Scalar = str | bool | int | FiniteFloat | None
Setting = Scalar | list[Scalar]
Text = str | int | FiniteFloat


@dataclass
class _ValueFile:
    label: Text
    flags: dict[str, Setting]
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass
class _AxisFile:
    name: Text
    values: list[_ValueFile | Scalar]
    flag: str = ""
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass
class _ArmFile:
    label: Text
    flags: dict[str, Setting] | None = None
    axes: list[_AxisFile] | None = None
    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass
class _StudyFile:
    name: Text
    arms: list[_ArmFile]
    title: Text | None = None
    question: Text | None = None
    paper: Text | None = None
    reference: Text | None = None
    flags: dict[str, Setting] | None = None
    seeds: list[int] | None = None
    checkpoints: list[int] = field(default_factory=list)
    spread: bool = False
    __pydantic_config__ = ConfigDict(extra="forbid")


def to_yaml(study: Study) -> str:
    """A file that `read_study` gives back as the same study."""
    arms = []
    for arm in study.arms:
        axes = [{"name": a.name, **_axis_to_yaml(a)} for a in arm.axes]
        arms.append({"label": arm.label, "flags": dict(arm.flags), "axes": axes})
    content = {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "paper": study.paper,
        "flags": dict(study.flags),
        "seeds": list(study.seeds),
        "checkpoints": list(study.checkpoints),
        "spread": study.spread,
        "reference": study.reference,
        "arms": arms,
    }
    content = {k: v for k, v in content.items() if v not in ("", [], {}, False)}
    return yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True)


def _axis_to_yaml(axis: Axis) -> dict[str, Any]:
    names = {tuple(value.flags) for value in axis.values}
    if len(names) == 1 and len(flags := names.pop()) == 1:
        values = [value.flags[flags[0]] for value in axis.values]
        if [label_of(v) for v in values] == [value.label for value in axis.values]:
            return {"flag": flags[0], "values": values}
    return {"values": [{"label": v.label, "flags": dict(v.flags)} for v in axis.values]}


def read_study(path: Path) -> Study:
    """A study from a YAML file.

    Raises:
        UserError: it cannot be read, or something in it is not as a study has it; it is named.
    """
    return parse_study(read_text(path, MOST_BYTES), path)


def parse_study(text: str, path: Path) -> Study:
    """A study from the YAML that `path` holds. Raises UserError as `read_study` does."""
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"Cannot read the study {path}: {error}.") from error
    try:
        return _study_from(check_value(content, _StudyFile))
    except (ValueError, OverflowError) as error:
        reason = shortened(error, 300)
        raise UserError(
            f"{path} is not a study: {reason}. Copy one: --print learning-rate."
        ) from error


def _study_from(file: _StudyFile) -> Study:
    name = str(file.name)
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: {name[:80]!r} cannot be a folder's name")
    if not file.arms:
        raise ValueError("arms: there is none")
    if any(seed < 0 for seed in file.seeds or ()):
        raise ValueError("seeds: numbers from 0 on")
    if any(step < 1 for step in file.checkpoints):
        raise ValueError("checkpoints: numbers of steps from 1 on")
    arms = []
    for arm in file.arms:
        axes = [Axis(str(a.name), tuple(map(_value_from, a.values, [a] * len(a.values))))
                for a in arm.axes or []]  # fmt: skip
        if any(not axis.values for axis in axes):
            raise ValueError(f"arms: an axis of {arm.label} has no values")
        arms.append(Arm(str(arm.label), dict(arm.flags or {}), tuple(axes)))
    return Study(
        name=name,
        title=str(file.title or name),
        question=str(file.question or ""),
        paper=str(file.paper or ""),
        flags=dict(file.flags or {}),
        seeds=tuple(file.seeds or (0, 1, 2)),
        checkpoints=tuple(file.checkpoints),
        spread=file.spread,
        reference=str(file.reference or ""),
        arms=tuple(arms),
    )


def _value_from(value: _ValueFile | Scalar, axis: _AxisFile) -> Value:
    if isinstance(value, _ValueFile):
        return Value(str(value.label), dict(value.flags))
    if not axis.flag:
        raise ValueError(f"axis {axis.name}: it has plain values, and no flag that they are for")
    if isinstance(value, str):
        value = yaml_value(value)  # YAML takes 1e-4 for a word
    return Value(label_of(value), {axis.flag: value})
