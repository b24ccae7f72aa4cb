"""How stable a method is: how far apart the runs of a sweep are when only settings change.

Everything is compared within a run (one subject, one training seed) over the points of an arm, so
that neither the subject nor the seed counts as spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..common.errors import UserError
from ..common.tensor_files import read_tensors
from ..evaluation.scoring import METRICS
from ..evaluation.statistics import Summary, by_group, rounded, summarise
from .results import Point, Results

FROM_CENTRE = "pictures from centre"
_BOUNDS = (0.0, math.inf)  # of distances and standard deviations
_DAMAGED = "{} is damaged: delete it, and the study makes it again."


@dataclass(frozen=True)
class Spread:
    """Of one arm, over the runs that all of its points have.

    Attributes:
        points: how many settings were compared.
        pictures: (runs, prompts, seeds): 1 - cosine to the sweep's centre in CLIP's space, the
            mean over points.
        scores: metric to (runs,): the standard deviation over points of the run's mean score.
        ranges: metric to the largest less the smallest of the points' means over subjects.
    """

    arm: str
    points: int
    runs: tuple[tuple[str, int], ...]
    pictures: np.ndarray
    scores: dict[str, np.ndarray]
    ranges: dict[str, float]

    def quantities(self) -> dict[str, np.ndarray]:
        """Title to array, for tables and charts: its runs laid under their subjects, which are the
        unit of intervals."""
        named = {f"std of {METRICS[m][0]}": values for m, values in self.scores.items()}
        subjects = [subject for subject, _ in self.runs]
        return {
            name: by_group(list(values), subjects)
            for name, values in {FROM_CENTRE: self.pictures, **named}.items()
        }


def spreads(results: Results) -> list[Spread]:
    """One for each arm with at least two points and a run that all of them have."""
    found = []
    for arm in results.study.arms:
        points = results.of_arm(arm.label)
        runs, centres = common_runs(points), results.centres.get(arm.label)
        if len(points) < 2 or not runs or not (points[0].features or centres is not None):
            continue
        scores, ranges = {}, {}
        for metric in results.metrics():
            by_run = np.array([[_mean(p, metric, run) for p in points] for run in runs])
            scores[metric] = by_run.std(axis=1, ddof=1)
            by_subject = by_group(list(by_run), [subject for subject, _ in runs])
            ranges[metric] = float(np.ptp(np.nanmean(by_subject, axis=1).mean(axis=0)))
        pictures = centres
        if pictures is None:
            pictures = np.stack([_from_centre(points, run) for run in runs])
        found.append(Spread(arm.label, len(points), tuple(runs), pictures, scores, ranges))
    return found


def common_runs(points: Sequence[Point]) -> list[tuple[str, int]]:
    """The runs that all of an arm's points have, in order."""
    return [run for run in (points[0].runs if points else []) if all(run in p.runs for p in points)]


def _mean(point: Point, metric: str, run: tuple[str, int]) -> float:
    return float(np.nanmean(point.scores[metric][point.runs.index(run)]))


def _from_centre(points: Sequence[Point], run: tuple[str, int]) -> np.ndarray:
    """Mean over points of the distance to their common centre, (prompts, seeds)."""
    paths = [point.features[point.runs.index(run)] for point in points]
    found = [_features(path) for path in paths]
    for path, one in zip(paths, found, strict=True):
        if one.shape != found[0].shape:
            raise UserError(_DAMAGED.format(path))
    features = torch.stack(found)  # (points, p, s, d)
    centre = F.normalize(features.mean(dim=0), dim=-1)
    return (1 - (features * centre).sum(dim=-1)).mean(dim=0).double().numpy()


def _features(path: Path) -> torch.Tensor:
    """CLIP's features of a point's pictures, (prompts, seeds, d). Raises UserError."""
    try:
        found = read_tensors(path)[0].get("clip")
    except UserError as error:
        raise UserError(_DAMAGED.format(path)) from error
    if found is None or found.dim() != 3:
        raise UserError(_DAMAGED.format(path))
    return found


def spread_table(found: Sequence[Spread]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row per quantity, one column per arm, two arms' difference by run."""
    names = list(found[0].quantities())
    rows = []
    for name in names:
        rows.append([name, *map(str, summaries(found, name))])
    for metric in found[0].ranges:
        rows.append([f"range of {METRICS[metric][0]}", *(rounded(s.ranges[metric]) for s in found)])
    head = ["", *(f"{s.arm} ({s.points} points)" for s in found)]
    if len(found) == 2 and found[0].runs == found[1].runs:
        head.append(f"{found[1].arm} − {found[0].arm}")
        for row, name in zip(rows, names, strict=False):
            apart = summarise(found[1].quantities()[name] - found[0].quantities()[name])
            row.append(apart.signed())
        rows = [row + [""] * (len(head) - len(row)) for row in rows]
    return head, rows


def as_json(found: Sequence[Spread]) -> list[dict[str, Any]]:
    """Every number of every arm."""
    made = []
    for s in found:
        spread = {name: summarise(v, _BOUNDS).as_dict() for name, v in s.quantities().items()}
        made.append(
            {
                "arm": s.arm,
                "points": s.points,
                "spread": spread,
                "ranges": s.ranges,
                "from_centre": s.pictures.round(6).tolist(),
            }
        )
    return made


def summaries(found: Sequence[Spread], name: str) -> list[Summary]:
    """One quantity's summary for every arm."""
    return [summarise(s.quantities()[name], _BOUNDS) for s in found]
