"""How easy a method is to tune: the learning rates at which it comes close to its own best.

For each score, the rates around the best one at which the mean over runs is at least nine tenths
of the best of that arm and size. Where the mean falls below it between two rates that were tried,
the end is interpolated, linearly in the logarithm of the rate: a grid is too coarse to compare
ranges that differ by less than its steps. A score that rewards not learning, such as CLIP-T, is
best at the lowest rate; "all" are the rates at which every score is near its own best.
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
        near: metric to the lowest and highest rate near its best, interpolated; "all": near the
            best in every metric, or None where there is none.
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
    low, high = rates[0], rates[-1]
    for metric in metrics:
        if metric in _LEFT_OUT:
            continue
        first, last = _around_best(rates, [points[rate].mean(metric) for rate in rates])
        near[metric] = first, last
        low, high = max(low, first), min(high, last)
    near["all"] = (low, high) if low <= high else None
    return Tolerance(label, tuple(rates), near)


def _around_best(rates: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest rate between which the means are near the largest one."""
    best = max(range(len(means)), key=means.__getitem__)
    bound = NEAR * means[best]
    ends = []
    for step in (-1, 1):
        number = best
        while 0 <= number + step < len(means) and means[number + step] >= bound:
            number += step
        if not 0 <= number + step < len(means):  # the grid ends
            ends.append(rates[number])
            continue
        inside, outside = means[number], means[number + step]
        share = (inside - bound) / (inside - outside)
        ends.append(rates[number] * (rates[number + step] / rates[number]) ** share)
    return ends[0], ends[1]


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
    first = "≤ " if low <= rates[0] else ""
    last = "≥ " if high >= rates[-1] else ""
    return f"{first}{_rounded(low)} to {last}{_rounded(high)} (× {_digits(high / low):g})"


def _rounded(rate: float) -> str:
    return label_of(_digits(rate))


def _digits(value: float) -> float:
    """With two significant digits, which is more than interpolation is good for."""
    return float(f"{value:.2g}")
