"""The page of an evaluation, its scores beside the pictures they are of; and the files with it."""

from __future__ import annotations

import json
from pathlib import Path

from ..common.charts import chart
from ..common.own_files import write_result
from ..common.pages import Cell, render
from ..common.pictures import load_square
from ..common.tables import markdown_table
from .charts import plane_chart, score_chart
from .report import (
    DIFFERENCES,
    ONE_RUN,
    Evaluation,
    as_json,
    caption,
    differences_table,
    kinds_table,
    overall,
    overall_table,
    pictures_csv,
    prompts_table,
    summary_csv,
)
from .scoring import METRICS


def evaluation_page(evaluation: Evaluation, shown_seeds: int = 2) -> str:
    """The whole page; `shown_seeds` of each prompt are shown as pictures, all are scored."""
    names = [row.name for row in evaluation.rows]
    settings = evaluation.settings
    summaries, metrics = overall(evaluation), evaluation.metrics()
    seeds = list(evaluation.seeds)[:shown_seeds]
    return render(
        "evaluation/page.html",
        title=f"Scores of “{evaluation.subject}”",
        lead=f"{', '.join(names)} on {settings['base']}: {settings['steps']} denoising steps, "
        f"guidance {settings['guidance']:g}.",
        notes=[*evaluation.notes, ONE_RUN],
        overall=overall_table(evaluation),
        caption=caption(evaluation),
        differences=differences_table(evaluation),
        differences_caption=DIFFERENCES,
        kinds=kinds_table(evaluation),
        charts=[
            chart(
                score_chart(names, summaries, metrics, evaluation.own),
                "Means with 95 % intervals; dashed: the photos compared with each other.",
            ),
            chart(
                plane_chart(names, summaries, evaluation.own),
                "Further right is more like the subject, further up closer to the prompt.",
            ),
        ],
        metrics=[METRICS[m] for m in metrics],
        example=evaluation.texts[0],
        shown_seeds=len(seeds),
        seeds=len(evaluation.seeds),
        columns=["photos", *(f"{row.name}, seed {s}" for row in evaluation.rows for s in seeds)],
        rows=_pictures(evaluation, len(seeds)),
        prompts=prompts_table(evaluation),
    )


def _pictures(evaluation: Evaluation, shown: int) -> list[tuple[str, list[Cell]]]:
    """One row per prompt: a photo, then `shown` pictures of each variant over their scores."""
    photos = [load_square(path) for path in evaluation.photos[: len(evaluation.texts)]]
    rows = []
    for number, text in enumerate(evaluation.texts):
        cells: list[Cell] = [(photos[number % len(photos)], "")]
        for row in evaluation.rows:
            values = row.scores.pictures
            names = [m for m in METRICS if m in values]
            for k in range(shown):
                words = " · ".join(f"{METRICS[m][0]} {values[m][number, k]:.2f}" for m in names)
                cells.append((row.images[number][k], words))
        rows.append((text, cells))
    return rows


def write_results(evaluation: Evaluation, folder: Path, shown_seeds: int) -> list[Path]:
    """Write everything; returns the paths."""
    markdown = f"{caption(evaluation)}\n\n{markdown_table(*overall_table(evaluation))}"
    if table := differences_table(evaluation):
        markdown += f"\n{DIFFERENCES}\n\n{markdown_table(*table)}"
    markdown += "".join(f"\n{note}\n" for note in evaluation.notes)
    texts = {
        "results.json": json.dumps(as_json(evaluation), indent=1),
        "results.md": markdown,
        "summary.csv": summary_csv(evaluation),
        "pictures.csv": pictures_csv(evaluation),
        "index.html": evaluation_page(evaluation, shown_seeds),
    }
    for name, content in texts.items():
        write_result(folder / name, content)
    return [folder / name for name in texts]
