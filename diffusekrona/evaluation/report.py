"""The results of an evaluation as tables: for JSON, CSV, Markdown, and the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.tables import csv_table, show_table
from .prompts import Prompt
from .scoring import METRICS, Scores, summary_of
from .statistics import Summary, summarise

DIFFERENCES = (
    "Differences between pictures of the same prompt and seed; intervals that exclude 0 are not "
    "corrected for the number of comparisons"
)
ONE_RUN = (
    "One training run and one subject per row: the intervals do not cover the variation between "
    "training runs. diffusekrona.study repeats runs over seeds and subjects."
)


@dataclass(frozen=True)
class Row:
    """One variant: its name, pictures [prompt][seed], their scores, and the median over layers of
    ||delta W|| / ||W|| where its adapter's file has it."""

    name: str
    images: list[list[Image.Image]]
    scores: Scores
    relative_norm: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that the reports show.

    Attributes:
        texts: what CLIP-T compares with, one per prompt.
        own: metric to the similarity of the subject's photos to each other.
        settings: base, clip, dino, steps, guidance.
        notes: what the reader must know, such as a score that was left out.
    """

    subject: str
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    seeds: Sequence[int]
    photos: Sequence[Path]
    rows: list[Row]
    own: dict[str, float]
    settings: dict[str, Any]
    notes: list[str]

    def metrics(self) -> list[str]:
        return self.rows[0].scores.metrics()

    def lines(self, kind: str) -> list[int]:
        """The prompts of a kind, by number."""
        return [n for n, prompt in enumerate(self.prompts) if prompt.kind == kind]


def overall(evaluation: Evaluation) -> list[dict[str, Summary]]:
    """For every variant, metric to its summary over prompts × seeds."""
    metrics = evaluation.metrics()
    return [{m: summary_of(m, row.scores.levels(m)) for m in metrics} for row in evaluation.rows]


def overall_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows: mean, interval and standard deviation of every metric."""
    metrics = evaluation.metrics()
    rows = []
    for row, summaries in zip(evaluation.rows, overall(evaluation), strict=True):
        rows.append([row.name, *(_cell(summaries[m]) for m in metrics)])
    if evaluation.own:
        own = [f"{evaluation.own[m]:.3f}" if m in evaluation.own else "–" for m in metrics]
        rows.append(["the photos, to each other", *own])
    head = ["", *(METRICS[m][0] for m in metrics)]
    norms = [row.relative_norm for row in evaluation.rows]
    if any(norm is not None for norm in norms):
        head.append("‖ΔW‖/‖W‖")
        norms += [None] * (len(rows) - len(norms))
        for cells, norm in zip(rows, norms, strict=True):
            cells.append("–" if norm is None else f"{norm:.1%}")
    return head, rows


def _cell(summary: Summary) -> str:
    return f"{summary} ±{summary.std:.3f}" if summary.std is not None else str(summary)


def differences_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]] | None:
    """Every variant less the first, picture by picture; None if there is only one."""
    first, *others = evaluation.rows
    if not others:
        return None
    metrics = evaluation.metrics()
    rows = []
    for row in others:
        apart = [row.scores.levels(m) - first.scores.levels(m) for m in metrics]
        signed = [summarise(values).signed() for values in apart]
        rows.append([f"{row.name} − {first.name}", *signed])
    return ["", *(METRICS[m][0] for m in metrics)], rows


def kinds_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]] | None:
    """The same by kind of prompt; None if there is only one kind."""
    kinds = list(dict.fromkeys(prompt.kind for prompt in evaluation.prompts))
    if len(kinds) < 2:
        return None
    metrics = evaluation.metrics()
    rows = []
    for row in evaluation.rows:
        for kind in kinds:
            lines = evaluation.lines(kind)
            cells = [str(summary_of(m, row.scores.levels(m)[lines])) for m in metrics]
            rows.append([row.name, f"{kind} ({len(lines)})", *cells])
    return ["", "prompts", *(METRICS[m][0] for m in metrics)], rows


def prompts_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Every prompt by every variant; its interval is over seeds."""
    metrics = evaluation.metrics()
    rows = []
    for number, text in enumerate(evaluation.texts):
        for row in evaluation.rows:
            values = {m: np.atleast_1d(row.scores.levels(m)[number]) for m in metrics}
            rows.append([text, row.name, *(str(summary_of(m, v)) for m, v in values.items())])
    return ["prompt", "", *(METRICS[m][0] for m in metrics)], rows


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Summaries overall, by prompt, and every picture's scores."""
    metrics = evaluation.metrics()
    variants = {}
    for row, summaries in zip(evaluation.rows, overall(evaluation), strict=True):
        levels = {m: row.scores.levels(m) for m in metrics}
        variants[row.name] = {
            "relative_norm": row.relative_norm,
            "overall": {m: s.as_dict() for m, s in summaries.items()},
            "prompts": [
                {
                    "prompt": text,
                    "kind": prompt.kind,
                    **{m: summary_of(m, np.atleast_1d(levels[m][n])).as_dict() for m in metrics},
                }
                for n, (text, prompt) in enumerate(
                    zip(evaluation.texts, evaluation.prompts, strict=True)
                )
            ],
            "pictures": {m: v.tolist() for m, v in row.scores.pictures.items()},
        }
    return {
        "settings": evaluation.settings,
        "subject": evaluation.subject,
        "seeds": list(evaluation.seeds),
        "photos": [path.name for path in evaluation.photos],
        "photos_among_themselves": evaluation.own,
        "notes": evaluation.notes,
        "variants": variants,
    }


def pictures_csv(evaluation: Evaluation) -> str:
    """One line per picture."""
    names = list(evaluation.rows[0].scores.pictures)
    rows = []
    for row in evaluation.rows:
        for n, text in enumerate(evaluation.texts):
            for k, seed in enumerate(evaluation.seeds):
                values = [f"{row.scores.pictures[m][n, k]:.6f}" for m in names]
                rows.append([row.name, evaluation.prompts[n].kind, text, seed, *values])
    return csv_table(["variant", "kind", "prompt", "seed", *names], rows)


def summary_csv(evaluation: Evaluation) -> str:
    """One line per variant and metric."""
    rows = []
    for row, summaries in zip(evaluation.rows, overall(evaluation), strict=True):
        for metric, s in summaries.items():
            rows.append([row.name, metric, s.mean, s.std, s.low, s.high, s.count])
    return csv_table(["variant", "metric", "mean", "std", "low", "high", "count"], rows)


def caption(evaluation: Evaluation) -> str:
    """What the scores are of and which models gave them; belongs to every table of them."""
    count = len(evaluation.prompts) * len(evaluation.seeds)
    by = ", ".join(filter(None, map(evaluation.settings.get, ("clip", "dino", "reader"))))
    return (
        f"{len(evaluation.prompts)} prompts × {len(evaluation.seeds)} seeds = {count} pictures "
        f"each, scored by {by}: mean [95 % interval] ± standard deviation over pictures"
    )


def print_results(evaluation: Evaluation) -> None:
    """The terminal's view: means over their intervals, so that it fits 80 columns."""
    head, rows = overall_table(evaluation)
    shown = [
        [name, *(re.sub(r" (\[.*\]).*", r"\n\1", cell) for cell in row)] for name, *row in rows
    ]
    show_table(caption(evaluation).partition(" ±")[0], head, shown)
    for note in evaluation.notes:
        print(note)
