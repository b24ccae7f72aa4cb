"""Charts of a study: scores along an axis, heat maps over two, spreads side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from ..common.charts import GREY, colour, literal, marker, new_chart
from ..evaluation.charts import bars
from ..evaluation.scoring import METRICS, UNITS
from ..evaluation.statistics import rounded
from .grid import Arm, Axis
from .results import Point, Results
from .spread import FROM_CENTRE, Spread, summaries

_IN_A_ROW = 4  # panels of a chart


def charts_of(results: Results) -> dict[str, tuple[Any, str]]:
    """File name to the study's figures and their captions."""
    charts = {}
    two_axes = [arm for arm in results.study.arms if len(arm.axes) == 2]
    if two_axes and not results.study.checkpoints:
        charts = {f"map_{arm.label.lower()}": (map_chart(results, arm), "") for arm in two_axes}
    else:
        words = "Means with 95 % intervals, as in the table; dashed: the bare base."
        charts["scores"] = (along_chart(results), words)
    if any(point.norms for point in results.trained()) and not results.study.checkpoints:
        words = "The same scores over how far the adapter moved the layers: ‖ΔW‖/‖W‖, median."
        charts["norms"] = (norms_chart(results), words)
    words = "Further right is more like the subject, further up closer to the prompt."
    charts["plane"] = (plane_chart(results), words)
    return charts


def along_chart(results: Results) -> Any:
    """One panel per metric: every point of every arm in the order of its axis, with intervals."""
    metrics = results.metrics()
    longest = max(len(results.of_arm(arm.label)) for arm in results.study.arms)
    figure, axes = _panels(len(metrics), max(2.6, min(3.5, 1.2 + 0.42 * longest)), 3.2)
    base = results.of_arm("base")
    for axis, metric in zip(axes, metrics, strict=True):
        ticks: dict[float, str] = {}
        for number, arm in enumerate(results.study.arms):
            ticks |= _line(axis, results.of_arm(arm.label), metric, number, arm.label)
        tilted = max(map(len, ticks.values()), default=0) > 5
        axis.set_xticks(
            list(ticks), list(ticks.values()), rotation=35 if tilted else 0,
            ha="right" if tilted else "center", fontsize=8,
        )  # fmt: skip
        axis.minorticks_off()
        axis.margins(x=0.12)
        if base:
            mean = base[0].mean(metric)
            axis.axhline(mean, color=GREY, ls="--", lw=1, label="base")
        axis.set_title(METRICS[metric][0], fontsize=10)
        axis.set_ylabel(UNITS[metric], fontsize=8)
        axis.set_xlabel(_along_what(results), fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def norms_chart(results: Results) -> Any:
    """One panel per metric: every point's mean over the size of what it changes."""
    metrics = results.metrics()
    figure, axes = _panels(len(metrics), 2.6, 3)
    for axis, metric in zip(axes, metrics, strict=True):
        for number, arm in enumerate(results.study.arms):
            points = [point for point in results.of_arm(arm.label) if point.norms]
            found = sorted((fmean(p.norms), p.mean(metric)) for p in points)
            if found:
                line = "-" if len(arm.axes) < 2 else ""  # two axes have no order
                axis.plot(
                    *zip(*found, strict=True), marker(number) + line, ms=5, lw=1.2,
                    color=colour(number), label=literal(arm.label),
                )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(METRICS[metric][0], fontsize=10)
        axis.set_ylabel(UNITS[metric], fontsize=8)
        axis.set_xlabel("‖ΔW‖/‖W‖", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of equal panels (inches), four in a row."""
    columns = min(count, _IN_A_ROW)
    rows = math.ceil(count / columns)
    figure, axes = new_chart(width * columns, height * rows, rows, columns)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _line(
    axis: Any, points: Sequence[Point], metric: str, number: int, label: str
) -> dict[float, str]:
    """Draws an arm; returns where its points are on the horizontal axis, and their names."""
    if not points:
        return {}
    where, logarithmic = _places(points)
    summaries = [point.summary(metric) for point in points]
    errors = np.array([bars(s) for s in summaries])[:, :, 0].T
    joined = "-" if where is not None else ""
    x = where if where is not None else list(range(len(points)))
    axis.errorbar(
        x, [s.mean for s in summaries], yerr=errors, fmt=marker(number) + joined, ms=5,
        capsize=3, lw=1.2, color=colour(number), label=literal(label),
    )  # fmt: skip
    if logarithmic:
        axis.set_xscale("log")
    return {place: _short(point) for place, point in zip(x, points, strict=True)}


def _along_what(results: Results) -> str:
    """What the horizontal axis holds, with its unit."""
    names = dict.fromkeys(axis.name for arm in results.study.arms for axis in arm.axes)
    steps = ["training steps"] if results.study.checkpoints else []
    return literal(" · ".join([*names, *steps])) or "arm"


def _short(point: Point) -> str:
    return literal(str(point.step) if point.step and not point.labels else point.label())


def _places(points: Sequence[Point]) -> tuple[list[float] | None, bool]:
    """The positions of points on a numeric axis, and whether it is logarithmic; None for points
    without numbers."""
    try:
        numbers = [float(point.step or point.labels[-1]) for point in points]
    except (ValueError, IndexError):
        return None, False
    if len(set(numbers)) < len(numbers):
        return None, False
    return numbers, min(numbers) > 0 and max(numbers) / min(numbers) >= 8


def map_chart(results: Results, arm: Arm) -> Any:
    """Heat maps of one arm with two axes, one panel per metric; scales shared over arms."""
    metrics = results.metrics()
    first, second = arm.axes
    width, height = 1 + 0.6 * len(first.values), 1.2 + 0.45 * len(second.values)
    figure, axes = _panels(len(metrics), width, height)
    for axis, metric in zip(axes, metrics, strict=True):
        grid = np.full((len(second.values), len(first.values)), np.nan)
        for point in results.of_arm(arm.label):
            row = [v.label for v in second.values].index(point.labels[1])
            column = [v.label for v in first.values].index(point.labels[0])
            grid[row, column] = point.mean(metric)
        everyone = [point.mean(metric) for point in results.trained()]
        low, high = min(everyone), max(everyone)
        axis.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                tone = "black" if value > low + 0.65 * (high - low) else "white"
                axis.text(
                    column, row, rounded(value), ha="center", va="center", fontsize=7, color=tone
                )
        axis.set_xticks(range(len(first.values)), _labels(first), fontsize=7)
        axis.set_yticks(range(len(second.values)), _labels(second), fontsize=7)
        axis.set_xlabel(literal(first.name), fontsize=8)
        axis.set_title(METRICS[metric][0], fontsize=10)
    for axis in axes[::_IN_A_ROW]:
        axis.set_ylabel(literal(second.name), fontsize=8)
    figure.suptitle(literal(arm.label), fontsize=11)
    return figure


def _labels(axis: Axis) -> list[str]:
    return [literal(value.label) for value in axis.values]


def spread_chart(found: Sequence[Spread]) -> Any:
    """A panel for the pictures' distance from their centre and one for each score's spread."""
    names = list(found[0].quantities())
    figure, axes = _panels(len(names), 2.4, 2.6)
    for axis, name in zip(axes, names, strict=True):
        for number, summary in enumerate(summaries(found, name)):
            axis.bar(number, summary.mean, 0.6, color=colour(number))
            error = bars(summary)
            axis.errorbar(number, summary.mean, yerr=error, fmt="none", capsize=4, color=GREY)
        axis.set_xticks(range(len(found)), [literal(s.arm) for s in found], fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.set_ylabel("1 − cosine" if name == FROM_CENTRE else "score", fontsize=8)
        axis.set_ylim(bottom=0)
    return figure


def plane_chart(results: Results) -> Any:
    """Fidelity against obedience: CLIP-I to the right, CLIP-T upwards, one mark per point."""
    figure, axes = new_chart(5.4, 4.0)
    axis = axes[0, 0]
    names: dict[tuple[float, float], str] = {}
    for number, arm in enumerate(results.study.arms):
        for point in results.of_arm(arm.label):
            x, y = point.mean("clip_i"), point.mean("clip_t")
            axis.plot(x, y, marker(number), color=colour(number), ms=6)
            names[x, y] = _short(point)
        axis.plot([], [], marker(number), color=colour(number), label=literal(arm.label))
    for point in results.of_arm("base"):
        x, y = point.mean("clip_i"), point.mean("clip_t")
        axis.plot(x, y, "*", color=GREY, ms=11, label="base")
    axis.set_xlabel("CLIP-I, cosine: similarity to the subject", fontsize=8)
    axis.set_ylabel("CLIP-T, cosine: agreement with the prompt", fontsize=8)
    axis.grid(alpha=0.3)
    axis.margins(0.12)
    axis.legend(fontsize=7, frameon=False)
    _write_names(axis, names)
    return figure


# Where a name may be placed beside its mark: offset in points, and which side of it is there.
_PLACES = (
    ((4, 3), "left", "bottom"),
    ((4, -3), "left", "top"),
    ((-4, 3), "right", "bottom"),
    ((-4, -3), "right", "top"),
)


def _write_names(axis: Any, names: Mapping[tuple[float, float], str]) -> None:
    """Write each mark's name beside it where there is room; in a crowd, none is better than two."""
    axis.figure.draw_without_rendering()  # so that places are known
    marks = [axis.transData.transform(point) for point in names]
    taken: list[Any] = []
    for point, name in names.items():
        for offset, right, top in _PLACES:
            text = axis.annotate(
                name,
                point,
                offset,
                textcoords="offset points",
                fontsize=6.5,
                ha=right,
                va=top,
                color=GREY,
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and not any(
                box.contains(*mark) for mark in marks
            ):
                taken.append(box)
                break
            text.remove()
