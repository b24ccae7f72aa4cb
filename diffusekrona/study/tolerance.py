"""How easy a method is to tune: the learning rates at which it comes close to its own best.

For each score, the rates next to the best one at which the mean over runs is at least nine tenths
of the best of that arm and size. A score that rewards not learning, such as CLIP-T, is best at the
lowest rate; "all" are the rates at which every score is near its own best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.scoring import METRICS
from .grid import Arm, label_of
from .results import Point, Results

NEAR = 0.9
#: Diversity and pose fall as a subject is learned, whatever the method: they say nothing of tuning.
_LEFT_OUT = {"diversity", "pose"}


@dataclass(frozen=True)
class Tolerance:
    """Of one arm at one size, after the same number of steps.

    Attributes:
        rates: all that were tried, in order.
        near: metric to the lowest and highest rate near its best; "all": near the best in every
            metric, or None where there is none.
    """

    label: str
    rates: tuple[float, ...]
    near: dict[str, tuple[float, float] | None]


def tolerances(results: Results) -> list[Tolerance]:
    """One for each arm, size and checkpoint with at least three learning rates."""
    return [
        _tolerance(label, points, results.metrics())
        for arm in results.study.arms
        for label, points in _sweeps(results, arm).items()
        if len(points) > 2
    ]


def _sweeps(results: Results, arm: Arm) -> dict[str, dict[float, Point]]:
    """For each of the arm's other settings its points by learning rate."""
    rates: dict[str, tuple[int, float]] = {}
    for number, axis in enumerate(arm.axes):
        for value in axis.values:
            if set(value.flags) == {"learning_rate"}:
                rates[value.label] = (number, float(value.flags["learning_rate"]))
    sweeps: dict[str, dict[float, Point]] = {}
    for point in results.of_arm(arm.label):
        for label in point.labels:
            if label in rates:
                number, rate = rates[label]
                steps = (f"{point.step} steps",) if point.step else ()
                rest = (*point.labels[:number], *point.labels[number + 1 :], *steps)
                sweeps.setdefault(" ".join((arm.label, *rest)), {})[rate] = point
    return sweeps


def _tolerance(label: str, points: dict[float, Point], metrics: Sequence[str]) -> Tolerance:
    rates = sorted(points)
    near: dict[str, tuple[float, float] | None] = {}
    everywhere = set(rates)
    for metric in metrics:
        if metric in _LEFT_OUT:
            continue
        means = [points[rate].mean(metric) for rate in rates]
        inside = _around_best(means)
        near[metric] = (rates[inside[0]], rates[inside[-1]])
        everywhere &= {rates[n] for n in inside}
    near["all"] = (min(everywhere), max(everywhere)) if everywhere else None
    return Tolerance(label, tuple(rates), near)


def _around_best(means: Sequence[float]) -> list[int]:
    """The numbers of the neighbours of the largest value that are near it, itself included."""
    best = max(range(len(means)), key=means.__getitem__)
    inside = [best]
    for step in (-1, 1):
        number = best + step
        while 0 <= number < len(means) and means[number] >= NEAR * means[best]:
            inside.append(number)
            number += step
    return sorted(inside)


def tolerance_table(found: Sequence[Tolerance]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row per arm and size; `≤` and `≥` mark ranges that end with the grid."""
    metrics = list(found[0].near)
    head = ["", "rates tried", *(METRICS[m][0] if m in METRICS else m for m in metrics)]
    rows = []
    for one in found:
        cells = [_shown(one.near[metric], one.rates) for metric in metrics]
        rows.append([one.label, f"{label_of(one.rates[0])} to {label_of(one.rates[-1])}", *cells])
    return head, rows


def _shown(near: tuple[float, float] | None, rates: Sequence[float]) -> str:
    if near is None:
        return "none"
    low, high = near
    first = "≤ " if low == rates[0] else ""
    last = "≥ " if high == rates[-1] else ""
    return f"{first}{label_of(low)} to {last}{label_of(high)} (× {float(f'{high / low:.2g}'):g})"
