"""Studies as YAML files that users can copy and change; `grid.py` shows what one looks like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import UserError
from .grid import Arm, Axis, Study, Value, label_of, yaml_value

_KEYS = {"name", "title", "question", "paper", "flags", "seeds", "arms", "checkpoints", "spread"}
_KEYS |= {"reference"}


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
        UserError: it cannot be read, or something in it cannot be understood; it is named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read the study {path}: {' '.join(str(error).split())}.") from error
    try:
        return _study_from(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing = isinstance(error, KeyError)
        reason = f"{error} is missing" if missing else " ".join(str(error).split())
        raise UserError(
            f"{path} is no study: {reason}. Copy one: --print learning-rate."
        ) from error


def _study_from(content: Mapping[str, Any]) -> Study:
    if not isinstance(content, Mapping):
        raise ValueError("it holds no mapping")
    if unknown := set(content) - _KEYS:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    arms = []
    for arm in content["arms"]:
        axes = [Axis(str(a["name"]), tuple(_values_from(a))) for a in arm.get("axes") or []]
        arms.append(Arm(str(arm["label"]), dict(arm.get("flags") or {}), tuple(axes)))
    if not arms:
        raise ValueError("it has no arms")
    return Study(
        name=str(content["name"]),
        title=str(content.get("title") or content["name"]),
        question=str(content.get("question") or ""),
        paper=str(content.get("paper") or ""),
        flags=dict(content.get("flags") or {}),
        seeds=tuple(int(seed) for seed in content.get("seeds") or (0, 1, 2)),
        checkpoints=tuple(int(step) for step in content.get("checkpoints") or ()),
        spread=bool(content.get("spread")),
        reference=str(content.get("reference") or ""),
        arms=tuple(arms),
    )


def _values_from(axis: Mapping[str, Any]) -> list[Value]:
    values = []
    for value in axis["values"]:
        if isinstance(value, Mapping):
            values.append(Value(str(value["label"]), dict(value["flags"])))
            continue
        if isinstance(value, str):
            value = yaml_value(value)  # YAML takes 1e-4 for a word
        values.append(Value(label_of(value), {str(axis["flag"]): value}))
    return values
