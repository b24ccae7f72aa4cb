"""A study's results in one file: its declaration, and the scores of every picture.

Whoever has the file has the tables: `diffusekrona study --results FILE`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError, reason_of
from ..common.json_files import parse_json, read_bytes
from ..evaluation.scoring import METRICS
from .cell import Number, Scoring
from .results import Point, Results
from .spread import common_runs
from .yaml_files import parse_study, to_yaml

_MOST_VALUES = 2_000_000  # of which each may take a hundred bytes of memory
_MOST_POINTS = 2_000
_MOST_PICTURES = 20_000  # of one point


def as_json(results: Results) -> dict[str, Any]:
    """Everything, with every picture's scores."""
    points = [
        {
            "arm": p.arm,
            "labels": p.labels,
            "step": p.step,
            "parameters": p.parameters,
            "relative_norms": p.norms,
            "runs": p.runs,
            "summary": {m: p.summary(m).as_dict() for m in results.metrics()},
            "scores": {m: [v.tolist() for v in p.scores[m]] for m in results.metrics()},
        }
        for p in results.points
    ]
    return {
        "study": results.study.name,
        "declaration": to_yaml(results.study),
        "scoring": asdict(results.scoring),
        "prompts": results.prompts,
        "subjects": list(results.subjects),
        "held_out": results.held_out,
        "points": points,
        "missing": results.missing,
    }


@dataclass
class _PointFile:
    arm: str
    labels: list[str]
    step: int | None
    parameters: int | None
    runs: list[tuple[str, int]]
    # Of each run (prompts, seeds), of diversity (prompts,).
    scores: dict[str, list[list[list[Number] | Number]]]
    relative_norms: list[Number] = field(default_factory=list)


@dataclass
class _SpreadFile:
    arm: str
    from_centre: list[list[list[Number]]] = field(default_factory=list)  # (runs, prompts, seeds)


@dataclass
class _ResultsFile:
    declaration: str
    scoring: Scoring
    prompts: list[str]
    subjects: list[str]
    points: list[_PointFile]
    missing: list[str]
    held_out: bool = False
    spread: list[_SpreadFile] = field(default_factory=list)


def read_results(path: Path) -> Results:
    """Results from a study's results.json, which may be compressed (.gz). They have no pictures.

    Raises:
        UserError: it cannot be read, or is not as a study writes it.
    """
    try:
        content = read_bytes(path)  # its limit: sixty thousand pictures take half of it
        if sum(map(content.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        file = parse_json(content, _ResultsFile)
        points = _points(file)
        centres = _centres(file, points)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} does not hold a study's results ({reason_of(error)}): have the study write "
            "it again, with --report_only."
        ) from error
    study = parse_study(file.declaration, path)
    subjects = dict.fromkeys(file.subjects, "")
    return Results(
        study,
        points,
        file.missing,
        file.prompts,
        file.scoring,
        subjects,
        file.held_out,
        centres,
    )


def _centres(file: _ResultsFile, points: Sequence[Point]) -> dict[str, np.ndarray]:
    """How far each arm's pictures are from their centre, if that was measured."""
    found = {}
    for one in file.spread:
        runs = len(common_runs([point for point in points if point.arm == one.arm]))
        pictures = np.array(one.from_centre, dtype=np.float64)
        if pictures.size and pictures.shape != (runs, len(file.prompts), len(file.scoring.seeds)):
            raise ValueError(f"{one.arm}: the distances from the centre do not fit its runs")
        if pictures.size:
            found[one.arm] = pictures
    return found


def _points(file: _ResultsFile) -> list[Point]:
    """Every point, if all have the same metrics, and scores of the file's prompts and seeds."""
    if not 0 < len(file.points) <= _MOST_POINTS:
        raise ValueError(f"points: from 1 to {_MOST_POINTS}, not {len(file.points)}")
    points = [_point(one, file) for one in file.points]
    if len({(point.arm, point.labels, point.step) for point in points}) < len(points):
        raise ValueError("two points are the same")
    if any(point.scores.keys() != points[0].scores.keys() for point in points):
        raise ValueError("not every point has the same scores")
    return points


def _point(one: _PointFile, file: _ResultsFile) -> Point:
    where = " ".join((one.arm, *one.labels))
    subjects = {subject for subject, _ in one.runs}
    if not one.runs or len(set(one.runs)) < len(one.runs) or not subjects <= set(file.subjects):
        raise ValueError(f"{where}: the runs are not those of the subjects, once for each seed")
    pictures = (len(file.prompts), len(file.scoring.seeds))
    if not 0 < len(one.runs) * pictures[0] * pictures[1] <= _MOST_PICTURES:
        raise ValueError(f"{where}: from 1 to {_MOST_PICTURES} pictures")
    scores = {}
    for name in METRICS.keys() & one.scores.keys():
        scores[name] = [np.array(run, dtype=np.float64) for run in one.scores[name]]
        shape = pictures[:1] if name == "diversity" else pictures
        if len(scores[name]) != len(one.runs) or any(run.shape != shape for run in scores[name]):
            raise ValueError(f"{where}: the scores ({name}) do not fit its runs")
    return Point(
        one.arm, tuple(one.labels), one.step, one.parameters, one.runs, scores, one.relative_norms
    )
