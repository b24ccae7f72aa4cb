"""Charts of scores with their intervals, for the pages of evaluations and studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..common.charts import GREY, colour, literal, marker, new_chart
from .scoring import METRICS, UNITS
from .statistics import Summary


def bars(summary: Summary) -> list[list[float]]:
    """An error bar's lengths below and above, as matplotlib wants them; NaN, no bar, if unknown."""
    if summary.low is None or summary.high is None:
        return [[math.nan], [math.nan]]
    below, above = summary.mean - summary.low, summary.high - summary.mean
    return [[max(0.0, below)], [max(0.0, above)]]


def score_chart(
    names: Sequence[str],
    summaries: Sequence[dict[str, Summary]],
    metrics: Sequence[str],
    own: dict[str, float],
) -> Any:
    """One panel per metric: every variant's mean and interval, one below the other."""
    figure, axes = new_chart(
        1.6 + 2.6 * len(metrics), 0.9 + 0.32 * len(names), 1, len(metrics), sharey=True
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for number, summary in enumerate(row[metric] for row in summaries):
            axis.errorbar(
                summary.mean, number, xerr=bars(summary), fmt="o", ms=5, capsize=3,
                color=colour(number),
            )  # fmt: skip
        if metric in own:
            axis.axvline(own[metric], color=GREY, ls="--", lw=1)
        axis.set_title(METRICS[metric][0], fontsize=10)
        axis.set_xlabel(UNITS[metric], fontsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.15, y=0.3 / max(1, len(names)))
    axes[0, 0].set_yticks(range(len(names)), map(literal, names), fontsize=8)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def plane_chart(
    names: Sequence[str], summaries: Sequence[dict[str, Summary]], own: dict[str, float]
) -> Any:
    """Fidelity against obedience: CLIP-I to the right, CLIP-T upwards, both intervals."""
    figure, axes = new_chart(4.6, 3.4)
    axis = axes[0, 0]
    for number, (name, row) in enumerate(zip(names, summaries, strict=True)):
        x, y = row["clip_i"], row["clip_t"]
        axis.errorbar(
            x.mean, y.mean, xerr=bars(x), yerr=bars(y), fmt=marker(number), ms=6,
            capsize=2, lw=1, color=colour(number), label=literal(name),
        )  # fmt: skip
    if "clip_i" in own:
        axis.axvline(own["clip_i"], color=GREY, ls="--", lw=1)
    axis.set_xlabel("CLIP-I, cosine: similarity to the subject", fontsize=8)
    axis.set_ylabel("CLIP-T, cosine: agreement with the prompt", fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    return figure
