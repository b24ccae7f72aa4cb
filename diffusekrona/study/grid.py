"""What a study is: arms, each with axes, each with values; every combination is a training run.

A study is a dataclass here and a small YAML file elsewhere (`--print NAME` writes one to copy):

    name: learning-rate
    title: Learning rate
    question: Where does the subject appear, and where do the prompts give way?
    flags: {a1: 4, a2: 64, max_train_steps: 500}     # of diffusekrona.train_dreambooth
    seeds: [0, 1, 2]
    arms:
    - label: KronA
      flags: {adapter_type: krona}
      axes:
      - name: learning rate
        flag: learning_rate
        values: [1.0e-4, 5.0e-4, 1.0e-3]
      - name: modules                                # values may set several flags, under a label
        values:
        - {label: Q alone, flags: {attn_update_unet: q}}

`checkpoints: [100, 200]` scores one run after so many steps each; the last of them is its end,
whatever `max_train_steps` is. The flag `pictures` is the study's own: so many of the subject's
pictures are trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..common.errors import UserError
from ..common.yaml_files import parse_yaml

Flags = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One value of an axis: what it is called, and the flags that it sets."""

    label: str
    flags: Flags


@dataclass(frozen=True)
class Axis:
    """One direction of a grid."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Arm:
    """One method or setting, and its own grid: the product of its axes."""

    label: str
    flags: Flags = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()

    def points(self) -> list[tuple[tuple[str, ...], Flags]]:
        """(labels, flags) of every combination, the first axis slowest."""
        points = []
        for values in product(*(axis.values for axis in self.axes)):
            flags = dict(self.flags)
            for value in values:
                flags |= value.flags
            points.append((tuple(value.label for value in values), flags))
        return points


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        question: what it asks; paper: what the paper says to it, for the reader to compare.
        flags: of every run; seeds: training seeds, a run for each.
        checkpoints: steps at which each run is scored; none: at its end.
        spread: report how far apart the points of each arm are (stability).
        reference: label of the point that the others are compared with; "": the first.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    question: str = ""
    paper: str = ""
    flags: Flags = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: tuple[int, ...] = ()
    spread: bool = False
    reference: str = ""


@dataclass(frozen=True)
class Subject:
    """A subject: its folder of pictures, the class word, its name in prompts, and a folder of
    other pictures of it, which similarity is measured against; None: those trained on."""

    name: str
    folder: str
    class_word: str
    identifier: str = "sks"
    held_out: str | None = None


def axis(name: str, flag: str, values: Sequence[Any]) -> Axis:
    """An axis of one flag."""
    return Axis(name, tuple(Value(label_of(v), {flag: v}) for v in values))


def label_of(value: Any) -> str:
    """How a value is shown: 0.0005 as 5e-4."""
    if isinstance(value, float):
        short = f"{value:g}"
        if 0 < abs(value) < 0.01:
            mantissa, _, exponent = f"{value:e}".partition("e")
            short = f"{float(mantissa):g}e{int(exponent)}"
        return short
    return str(value)


def factor_values(pairs: Sequence[tuple[int, int]]) -> tuple[Value, ...]:
    """Values that set a1 and a2."""
    return tuple(Value(f"({a1}, {a2})", {"a1": a1, "a2": a2}) for a1, a2 in pairs)


def check_names(study: Study) -> None:
    """Raises UserError where two points would have one name, and so become one in the tables."""
    named = [("arms", [arm.label for arm in study.arms]), ("seeds", study.seeds)]
    named += [
        (f"values of {axis.name}", [value.label for value in axis.values])
        for arm in study.arms
        for axis in arm.axes
    ]
    for what, names in named:
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise UserError(
                f"{study.name} has two {what} called {twice[0]}: give each a different name."
            )
    if any(arm.label == "base" for arm in study.arms):
        raise UserError(
            f'{study.name}: "base" is the name of the bare base: give that arm another name.'
        )


def steps_for(checkpoints: Sequence[int]) -> Flags:
    """The training flags that checkpoints, at least one, decide."""
    return {"max_train_steps": max(checkpoints), "checkpointing_steps": math.gcd(*checkpoints)}


def check_steps(study: Study, changes: Flags) -> None:
    """Raises UserError where `changes`, an arm or an axis sets steps that the checkpoints decide
    otherwise. Those of the study as a whole are what it has without checkpoints."""
    if not study.checkpoints:
        return
    sources = [changes, *(flags for arm in study.arms for _, flags in arm.points())]
    for name, decided in steps_for(study.checkpoints).items():
        if other := [flags[name] for flags in sources if flags.get(name, decided) != decided]:
            raise UserError(
                f"{study.name}: {name} cannot be {other[0]}: the checkpoints make it {decided}; "
                "use --checkpoints."
            )


# --- changes from the command line ----------------------------------------------------------------


def with_flags(study: Study, changes: Flags) -> Study:
    """The study with flags fixed for every run, whatever it said before.

    Raises:
        UserError: a flag that an axis of the study varies.
    """
    varied = {k for arm in study.arms for a in arm.axes for v in a.values for k in v.flags}
    if clash := varied & set(changes):
        raise UserError(f"--set {clash.pop()}: this study varies it; use --axis to change how.")
    arms = tuple(
        replace(arm, flags={k: v for k, v in arm.flags.items() if k not in changes})
        for arm in study.arms
    )
    return replace(study, flags={**study.flags, **changes}, arms=arms)


def with_axis(study: Study, name: str, texts: Sequence[str]) -> Study:
    """The study with other values on the axis of that name, or fewer of those it has.

    Values are labels that the axis has, numbers for its flag, or "4x64" for a1 and a2. If several
    arms have an axis of that name, each takes the values that it can.

    Raises:
        UserError: no such axis, a value that none can take, or an arm that is left without.
    """
    found = [a for arm in study.arms for a in arm.axes if _is_called(a, name)]
    if not found:
        known = ", ".join(dict.fromkeys(a.name for arm in study.arms for a in arm.axes))
        raise UserError(f"--axis {name}: the axes of {study.name} are: {known or 'none'}.")
    for text in texts:
        if all(_value(axis, text) is None for axis in found):
            labels = "; ".join(value.label for axis in found for value in axis.values)
            raise UserError(f"--axis {name}: cannot take {text!r}; it has: {labels}.")
    arms = []
    for arm in study.arms:
        axes = []
        for old in arm.axes:
            if _is_called(old, name):
                values = tuple(filter(None, (_value(old, text) for text in texts)))
                if not values:
                    raise UserError(
                        f"--axis {name}: no value among {', '.join(texts)} for {arm.label}."
                    )
                old = Axis(old.name, values)
            axes.append(old)
        arms.append(replace(arm, axes=tuple(axes)))
    return replace(study, arms=tuple(arms))


def _is_called(axis: Axis, name: str) -> bool:
    return name in (axis.name, axis.name.replace(" ", "_"))


def _value(axis: Axis, text: str) -> Value | None:
    """What `text` means on an axis; None if nothing."""
    for value in axis.values:
        if text.replace(" ", "") == value.label.replace(" ", ""):
            return value
    flags = set(axis.values[0].flags)
    if flags == {"a1", "a2"}:
        parts = text.split("x")
        whole = len(parts) == 2 and all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts)
        return factor_values([(int(parts[0]), int(parts[1]))])[0] if whole else None
    if len(flags) != 1 or any(set(v.flags) != flags for v in axis.values):
        return None
    flag, given = flags.pop(), yaml_value(text)
    have = axis.values[0].flags[flag]
    alike = isinstance(given, type(have)) or (isinstance(have, float) and isinstance(given, int))
    return Value(label_of(given), {flag: given}) if alike else None


def yaml_value(text: str) -> Any:
    """ "3e-3" to 0.003, "true" to True; what YAML reads as more than one value stays text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        value = parse_yaml(text)
    except ValueError:
        return text
    return value if isinstance(value, str | bool | int | float | None) else text
