"""What came out of a study: scores gathered by point, with intervals over runs, and spreads.

A point is a place in a study's grid: arm, labels and, along one run, a checkpoint. Its scores lie
in an array (subjects, training seeds, prompts, picture seeds), and subjects are the unit: intervals
are about other subjects. The order of cells finished, the engine and interruptions leave no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..adapters.norms import norms_in
from ..evaluation.scoring import METRICS, summary_of
from ..evaluation.statistics import Summary, by_group, group_means, separated, summarise
from .cell import Cell, Scoring, finished
from .grid import Study


@dataclass
class Point:
    """One place in the grid and its runs.

    Attributes:
        runs: (subject, seed) of each run, in the study's order.
        scores: metric to one (prompts, seeds) a run; diversity's is (prompts,).
        norms: of each run, the median over layers of ||delta W|| / ||W|| where it is known.
        folders: of each run's cell; pictures: their paths in it, prompt by prompt.
    """

    arm: str
    labels: tuple[str, ...]
    step: int | None
    parameters: int | None = None
    runs: list[tuple[str, int]] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    features: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    pictures: list[list[str]] = field(default_factory=list)

    def label(self) -> str:
        """Without the arm."""
        parts = [*self.labels, *([f"{self.step} steps"] if self.step else [])]
        return " · ".join(parts) or self.arm

    def mean(self, metric: str) -> float:
        """Over subjects: the summary's mean, without its interval."""
        return float(group_means(self._by_subject(metric)).mean())

    def summary(self, metric: str) -> Summary:
        return summary_of(metric, self._by_subject(metric))

    def _by_subject(self, metric: str) -> np.ndarray:
        return by_group(self.scores[metric], [subject for subject, _ in self.runs])


@dataclass
class Results:
    """A study's points in the order of its grid, the bare base first.

    Attributes:
        missing: titles of the cells that lack.
        prompts: their templates; subjects: name to folder of pictures.
        held_out: whether similarity is to pictures that were not trained on, of every subject.
        centres: arm to `spread.Spread.pictures`, where the results come from a file, which holds
            no pictures' features.
    """

    study: Study
    points: list[Point]
    missing: list[str]
    prompts: list[str]
    scoring: Scoring
    subjects: dict[str, str] = field(default_factory=dict)
    held_out: bool = False
    centres: dict[str, np.ndarray] = field(default_factory=dict)

    def metrics(self) -> list[str]:
        have = [set(point.scores) for point in self.points]
        return [m for m in METRICS if have and all(m in names for names in have)]

    def of_arm(self, arm: str) -> list[Point]:
        return [point for point in self.points if point.arm == arm]

    def trained(self) -> list[Point]:
        return [point for point in self.points if point.arm != "base"]


def gather(study: Study, cells: Sequence[Cell], root: Path) -> Results:
    """Read every finished cell's result."""
    points: dict[tuple[Any, ...], Point] = {}
    missing = []
    for cell in cells:
        for step in cell.checkpoints or (None,):
            key = (cell.arm, cell.labels, step)
            points.setdefault(key, Point(cell.arm, cell.labels, step))
        result = finished(cell, root)
        if result is None:
            missing.append(cell.title())
            continue
        for content in result["points"]:
            point = points[cell.arm, cell.labels, content["step"]]
            _add(point, cell, content, result["cost"], cell.scored(root))
    texts = [text.partition(":")[2] for text in cells[0].texts]
    live = [point for point in points.values() if point.runs]
    for point in live:  # a score that a damaged result lacks is none of the point's
        point.scores = {m: v for m, v in point.scores.items() if len(v) == len(point.runs)}
    subjects = {cell.subject.name: cell.subject.folder for cell in cells}
    held_out = all(cell.held_out for cell in cells)
    return Results(study, live, missing, texts, cells[0].scoring, subjects, held_out)


def _add(point: Point, cell: Cell, content: Any, cost: Any, folder: Path) -> None:
    point.runs.append((cell.subject.name, cell.seed))
    point.parameters = cost.get("trained_parameters")
    norms = norms_in(cost) if content["step"] is None else None
    point.norms += [norms["median"]] if norms else []
    for name, values in content["scores"].items():
        point.scores.setdefault(name, []).append(np.array(values))
    if content["diversity"] is not None:
        point.scores.setdefault("diversity", []).append(np.array(content["diversity"]))
    point.features.append(folder / content["features"])
    point.folders.append(folder)
    point.pictures.append(content["pictures"])


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row per point, every score's mean and interval over runs."""
    metrics = results.metrics()
    rows = []
    for point in results.points:
        count = f"{point.parameters:,}" if point.parameters else "–"
        cells = [str(point.summary(m)) for m in metrics]
        name = "base" if point.arm == "base" else _name(results, point)
        norm = f"{mean(point.norms):.1%}" if point.norms else "–"
        rows.append([name, count, str(len(point.runs)), norm, *cells])
    axes = dict.fromkeys(axis.name for arm in results.study.arms for axis in arm.axes)
    head = [" · ".join(axes), "parameters", "runs", "‖ΔW‖/‖W‖"]
    head += [METRICS[m][0] for m in metrics]
    if not any(point.norms for point in results.points):
        return head[:3] + head[4:], [row[:3] + row[4:] for row in rows]
    return head, rows


def reference_of(results: Results) -> Point | None:
    """The point that the others are compared with; None if there are no two trained ones."""
    points = results.trained()
    named = [p for p in points if results.study.reference in (p.label(), *p.labels)]
    return (named or points)[0] if len(points) > 1 else None


def difference(point: Point, other: Point, metric: str) -> np.ndarray | None:
    """`point` less `other`, picture by picture of the runs that both have: (subjects, training
    seeds, prompts, picture seeds); None without any."""
    shared = [run for run in point.runs if run in other.runs]
    if not shared:
        return None
    apart = [
        point.scores[metric][point.runs.index(run)] - other.scores[metric][other.runs.index(run)]
        for run in shared
    ]
    return by_group(apart, [subject for subject, _ in shared])


def differences_table(results: Results) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows: every trained point less the reference; None if there is only one.

    `*` marks what differs from 0 after correction for all of the table's comparisons.
    """
    reference = reference_of(results)
    if reference is None:
        return None
    metrics = results.metrics()
    points = [point for point in results.trained() if point is not reference]
    apart = {
        (p, m): difference(points[p], reference, m) for p in range(len(points)) for m in metrics
    }
    marked = _separated(apart)
    rows = []
    for number, point in enumerate(points):
        cells = []
        for metric in metrics:
            values = apart[number, metric]
            mark = "*" if (number, metric) in marked else ""
            cells.append("–" if values is None else summarise(values).signed() + mark)
        rows.append([_name(results, point), *cells])
    title = f"difference from {_name(results, reference)}"
    return [title, *(METRICS[m][0] for m in metrics)], rows


def _name(results: Results, point: Point) -> str:
    return point.label() if len(results.study.arms) == 1 else f"{point.arm}: {point.label()}"


def _separated(apart: dict[Any, np.ndarray | None]) -> set[Any]:
    """The comparisons that differ from 0 if all are looked at at once; none where a run lacks."""
    means = {
        key: group_means(values)
        for key, values in apart.items()
        if values is not None and not np.isnan(values).all()
    }
    if len({len(values) for values in means.values()}) != 1:
        return set()
    found = separated(np.stack(list(means.values())))
    return {key for key, yes in zip(means, found, strict=True) if yes}


def csv_rows(results: Results) -> tuple[Sequence[str], list[list[Any]]]:
    """The same for programs: one line per point and metric, numbers unrounded."""
    rows = []
    for point in results.points:
        for metric in results.metrics():
            s = point.summary(metric)
            where = [point.arm, " · ".join(point.labels), point.step, point.parameters]
            rows.append([*where, len(point.runs), metric, s.mean, s.std, s.low, s.high, s.count])
    head = "arm labels step parameters runs metric mean std low high pictures"
    return head.split(), rows
