"""The page of an evaluation, its scores beside the pictures they are of; and the files with it."""

from __future__ import annotations

import json
from pathlib import Path

from ..common import html_page as html
from ..common.files import write_text
from ..common.pictures import fit_picture, load_picture
from ..common.tables import markdown_table
from .charts import plane_chart, score_chart
from .report import (
    DIFFERENCES,
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

_MOST_PHOTOS = 8


def evaluation_page(evaluation: Evaluation, shown_seeds: int = 2) -> str:
    """The whole page; `shown_seeds` of each prompt are shown as pictures, all are scored."""
    names = ", ".join(row.name for row in evaluation.rows)
    settings = evaluation.settings
    lead = (
        f"{names} on {settings['base']}: {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}."
    )
    sections = [
        _scores(evaluation),
        _photos(evaluation),
        _pictures(evaluation, shown_seeds),
        html.section("By prompt", html.table(*prompts_table(evaluation))),
    ]
    return html.page(f"Scores of “{evaluation.subject}”", lead, sections)


def _scores(evaluation: Evaluation) -> str:
    names = [row.name for row in evaluation.rows]
    summaries = overall(evaluation)
    pieces = [html.table(*overall_table(evaluation), caption(evaluation))]
    pieces += [html.paragraph(note, "warn") for note in evaluation.notes]
    if table := differences_table(evaluation):
        pieces.append(html.table(*table, DIFFERENCES))
    if table := kinds_table(evaluation):
        pieces.append(html.table(*table, "By kind of prompt"))
    metrics = evaluation.metrics()
    words = ". ".join(f"{METRICS[m][0]}: {METRICS[m][1]}" for m in metrics)
    pieces.append(
        html.chart(
            score_chart(names, summaries, metrics, evaluation.own),
            "Means with 95 % intervals; dashed: the photos among themselves.",
        )
    )
    pieces.append(
        html.chart(
            plane_chart(names, summaries, evaluation.own),
            "Further right is more like the subject, further up more obedient to the prompt.",
        )
    )
    pieces.append(
        html.paragraph(
            f"{words}. Intervals are bootstraps over prompts and, within them, seeds; they say "
            "nothing of how another training run of the same settings would have come out. CLIP-T "
            f"compares with the prompt as in “{evaluation.texts[0]}”. Scores of different scoring "
            "models do not compare.",
            "note",
        )
    )
    return html.section("Scores", *pieces)


def _photos(evaluation: Evaluation) -> str:
    shown = evaluation.photos[:_MOST_PHOTOS]
    cells = []
    for path in shown:
        image = load_picture(path)
        cells.append((fit_picture(image, (min(image.size),) * 2)[0], path.name))
    count = len(evaluation.photos)
    title = "The subject's photos" + (f", {len(shown)} of {count}" if count > len(shown) else "")
    return html.section(title, html.pictures_table("", [""] * len(cells), [("", cells)]))


def _pictures(evaluation: Evaluation, shown_seeds: int) -> str:
    seeds = list(evaluation.seeds)[:shown_seeds]
    columns = [f"{row.name}, seed {seed}" for row in evaluation.rows for seed in seeds]
    rows = []
    for number, text in enumerate(evaluation.texts):
        cells = []
        for row in evaluation.rows:
            for k in range(len(seeds)):
                values = row.scores.pictures
                shown = (m for m in METRICS if m in values)
                words = " · ".join(f"{METRICS[m][0]} {values[m][number, k]:.2f}" for m in shown)
                cells.append((row.images[number][k], words))
        rows.append((text, cells))
    note = f"{len(seeds)} of {len(evaluation.seeds)} seeds; the same seeds for all."
    return html.section(
        "Pictures", html.paragraph(note, "note"), html.pictures_table("prompt", columns, rows)
    )


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
        write_text(folder / name, content)
    return [folder / name for name in texts]
