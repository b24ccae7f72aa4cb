"""A study's results in one file: its declaration, and the scores of every picture.

Whoever has the file has the tables: `diffusekrona study --results FILE`.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from ..common.errors import UserError
from ..common.json_files import parse_json
from .cell import Scoring
from .results import Point, Results
from .yaml_files import parse_study, to_yaml

_MOST_BYTES = 200_000_000  # unpacked; sixty thousand pictures take some thirty


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
    scores: dict[str, list[list[list[FiniteFloat]]] | list[list[FiniteFloat]]]
    relative_norms: list[FiniteFloat] = field(default_factory=list)


@dataclass
class _ResultsFile:
    declaration: str
    scoring: Scoring
    prompts: list[str]
    subjects: list[str]
    points: list[_PointFile]
    missing: list[str]
    held_out: bool = False


def read_results(path: Path) -> Results:
    """Results from a study's results.json, which may be compressed (.gz). They have no pictures.

    Raises:
        UserError: it cannot be read, or is not as a study writes it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES // 1_000_000} MB")
        file = parse_json(content, _ResultsFile)
        points = [_point(one) for one in file.points]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} does not hold a study's results: {error}") from error
    study = parse_study(file.declaration, path)
    subjects = dict.fromkeys(file.subjects, "")
    return Results(study, points, file.missing, file.prompts, file.scoring, subjects, file.held_out)


def _point(file: _PointFile) -> Point:
    scores = {name: [np.array(run) for run in runs] for name, runs in file.scores.items()}
    shapes = {run.shape for name, runs in scores.items() if name != "diversity" for run in runs}
    if len(shapes) > 1 or any(len(runs) != len(file.runs) for runs in scores.values()):
        raise ValueError(f"the scores of {file.arm} {' '.join(file.labels)} do not fit its runs")
    return Point(
        file.arm, tuple(file.labels), file.step, file.parameters, file.runs, scores,
        file.relative_norms,
    )  # fmt: skip
