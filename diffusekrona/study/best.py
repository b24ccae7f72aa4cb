"""Each method at its best, chosen on other subjects than it is scored on.

The best point of a grid is better on the pictures that chose it than on others, and more so the
more points there are. Here a subject's point is chosen on all other subjects: what someone would
get who takes over the settings that served for other subjects.

Chosen is the point with the highest geometric mean of likeness, the mean of CLIP-I and DINO, and
CLIP-T. A limit on CLIP-T instead would decide by hairs where it falls between two points of a grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.scoring import METRICS, summary_of
from ..evaluation.statistics import by_group, group_means, separated, summarise
from .results import Point, Results


@dataclass(frozen=True)
class Best:
    """Of one arm.

    Attributes:
        chosen: labels of the points, and for how many subjects each was chosen.
        scores: metric to the mean of each subject (subjects,), at the point chosen for it.
    """

    arm: str
    chosen: dict[str, int]
    scores: dict[str, np.ndarray]


def best_of_arms(results: Results) -> list[Best]:
    """One for each arm; none where fewer than two arms have been run on every subject, one of them
    with several points, or with fewer than three subjects."""
    metrics, subjects = results.metrics(), list(results.subjects)
    arms = {
        arm.label: [p for p in results.of_arm(arm.label) if _subjects(p) == subjects]
        for arm in results.study.arms
    }
    arms = {label: points for label, points in arms.items() if points}
    several = max(map(len, arms.values()), default=0) > 1
    if "clip_t" not in metrics or len(subjects) < 3 or len(arms) < 2 or not several:
        return []
    return [_best(label, points, metrics) for label, points in arms.items()]


def _subjects(point: Point) -> list[str]:
    return list(dict.fromkeys(subject for subject, _ in point.runs))


def _means(point: Point, metric: str) -> np.ndarray:
    """(subjects,): over training seeds, prompts and pictures."""
    return group_means(by_group(point.scores[metric], [subject for subject, _ in point.runs]))


def _best(arm: str, points: Sequence[Point], metrics: Sequence[str]) -> Best:
    scores = {m: np.stack([_means(point, m) for point in points]) for m in metrics}
    likeness = np.mean([scores[m] for m in ("clip_i", "dino") if m in scores], axis=0)
    subjects = np.arange(likeness.shape[1])
    chosen = []
    for subject in subjects:
        like, obeys = (v[:, subjects != subject].mean(axis=1) for v in (likeness, scores["clip_t"]))
        chosen.append(int(np.argmax(np.maximum(like, 0) * np.maximum(obeys, 0))))
    return Best(
        arm,
        dict(Counter(points[n].label() for n in chosen).most_common()),
        {m: values[chosen, subjects] for m, values in scores.items()},
    )


def best_table(found: Sequence[Best]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each arm's means, then the others' differences from the first."""
    metrics = list(found[0].scores)
    rows = [
        [one.arm, _times(one), *(str(summary_of(m, one.scores[m])) for m in metrics)]
        for one in found
    ]
    apart = {(one.arm, m): one.scores[m] - found[0].scores[m] for one in found[1:] for m in metrics}
    marks = dict(zip(apart, separated(np.stack(list(apart.values()))), strict=True))
    for one in found[1:]:
        cells = [
            summarise(apart[one.arm, m]).signed() + ("*" if marks[one.arm, m] else "")
            for m in metrics
        ]
        rows.append([f"{one.arm} less {found[0].arm}", "", *cells])
    return ["", "chosen", *(METRICS[m][0] for m in metrics)], rows


def _times(one: Best) -> str:
    if len(one.chosen) == 1:
        return next(iter(one.chosen))
    return ", ".join(f"{label} ({count} of {sum(one.chosen.values())})"
                     for label, count in one.chosen.items())  # fmt: skip
