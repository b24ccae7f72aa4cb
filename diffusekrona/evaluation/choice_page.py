"""The page of a choice: all candidates in the plane of likeness and obedience; pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.charts import GREY, Chart, chart, colour, literal, marker, new_chart
from ..common.pages import Cell, render
from ..common.pictures import load_square, open_png
from .charts import bars
from .choice_report import (
    NAMES,
    ChoiceReport,
    Row,
    caption,
    choice_table,
    marked_row,
    sentences,
)

SEEDS_SHOWN = 2  # of the chosen candidate and the base; of the others one


def choice_page(report: ChoiceReport) -> str:
    """The whole page, with everything it shows inside."""
    chosen = report.chosen
    settings = report.settings
    charts = [plane(report)]
    if report.losses:
        charts.append(loss_chart(report))
    summaries = report.summaries(report.base)
    return render(
        "evaluation/choice.html",
        title=f"Choosing a checkpoint of “{report.run.resolve().name}”",
        lead=f"“{report.subject}” on {settings['base']}: {settings['steps']} denoising steps, "
        f"guidance {settings['guidance']:g}, preference {report.prefer}.",
        sentences=sentences(report),
        notes=report.notes,
        charts=charts,
        scores=choice_table(report, True),
        caption=caption(report),
        marked=marked_row(report),
        metrics=[NAMES[name] for name in NAMES if name in summaries],
        shown=(chosen.name, *_beside(report, chosen)) if chosen else None,
        closest=_closest(report, chosen) if chosen and chosen.scores.nearest_photo else None,
        others=[(row.name, *_alone(report, row)) for row in report.rows if row is not chosen],
        not_drawn=report.not_drawn,
    )


def _beside(report: ChoiceReport, row: Row) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Columns and rows: a photo, the base's pictures, the candidate's."""
    paths = [*report.held_out, *report.training][: len(report.texts)]
    photos = [load_square(path) for path in paths]
    seeds = list(report.seeds)[:SEEDS_SHOWN]
    columns = ["photos", *(f"{one.name}, seed {s}" for one in (report.base, row) for s in seeds)]
    rows = []
    for number, text in enumerate(report.texts):
        cells: list[Cell] = [(photos[number % len(photos)], "")]
        for one in (report.base, row):
            cells += [(_open(path), "") for path in one.pictures[number][: len(seeds)]]
        rows.append((text, cells))
    return columns, rows


def _closest(report: ChoiceReport, row: Row) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Columns and rows: the picture that is nearest to a training picture, and that one."""
    nearest = np.array(row.scores.nearest)
    prompt, seed = map(int, np.unravel_index(nearest.argmax(), nearest.shape))
    photo = report.training[row.scores.nearest_photo[prompt][seed]]
    words = f"seed {report.seeds[seed]}"
    if report.closeness is not None:
        words += f", copy risk {nearest[prompt, seed] - report.closeness:+.3f}"
    cells: list[Cell] = [(_open(row.pictures[prompt][seed]), words)]
    return ["drawn", "training picture"], [
        (report.texts[prompt], [*cells, (load_square(photo), photo.name)])
    ]


def _alone(report: ChoiceReport, row: Row) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    rows: list[tuple[str, list[Cell]]] = [
        (text, [(_open(line[0]), "")])
        for text, line in zip(report.texts, row.pictures, strict=True)
    ]
    return [f"seed {report.seeds[0]}"], rows


def _open(path: Path) -> Image.Image:
    with open_png(path) as image:
        return image.convert("RGB")


def plane(report: ChoiceReport) -> Chart:
    """Likeness to the right, obedience upwards: one line per weight, from step to step."""
    figure, axes = new_chart(5.0, 4.0)
    axis = axes[0, 0]
    base = report.summaries(report.base)
    _interval_of(axis, base)
    axis.plot(base["likeness"].mean, base["clip_t"].mean, "*", ms=10, color=GREY, label="base")
    weights = sorted({row.weight for row in report.rows}, reverse=True)
    for number, weight in enumerate(weights):
        rows = [row for row in report.rows if row.weight == weight]
        found = [report.summaries(row) for row in rows]
        xs, ys = ([s[name].mean for s in found] for name in ("likeness", "clip_t"))
        axis.plot(
            xs, ys, f"{marker(number)}-", ms=5, lw=0.8, color=colour(number),
            label=literal(f"weight {weight:g}"),
        )  # fmt: skip
        _label(axis, [row.step for row in rows], xs, ys, colour(number))
    if report.chosen:
        chosen, words = report.summaries(report.chosen), f"chosen: {report.chosen.name}"
        x, y = chosen["likeness"], chosen["clip_t"]
        axis.errorbar(
            x.mean, y.mean, xerr=bars(x), yerr=bars(y), fmt="o", ms=13, mfc="none",
            mew=1.8, capsize=2, lw=1, color="#3a9a5b", label=literal(words),
        )  # fmt: skip
    axis.set_xlabel("likeness to the subject, cosine", fontsize=8)
    axis.set_ylabel("obedience (CLIP-T), cosine", fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    return chart(
        figure,
        "Further right is more like the subject, further up closer to the prompt. Numbers are "
        "steps; the band is the interval of the base's obedience.",
    )


def _interval_of(axis: Any, base: dict[str, Any]) -> None:
    if base["clip_t"].low is not None:
        axis.axhspan(base["clip_t"].low, base["clip_t"].high, color=GREY, alpha=0.15, lw=0)


def _label(
    axis: Any, steps: Sequence[int], xs: Sequence[float], ys: Sequence[float], ink: str
) -> None:
    for step, x, y in zip(steps, xs, ys, strict=True):
        axis.annotate(
            str(step), (x, y), fontsize=7, color=ink, xytext=(4, 4), textcoords="offset points"
        )


def loss_chart(report: ChoiceReport) -> Chart:
    """The validation loss over steps, and where it turned."""
    figure, axes = new_chart(4.6, 4.0)
    axis = axes[0, 0]
    steps, losses = zip(*report.losses, strict=True)
    axis.plot(steps, losses, "o-", ms=3, lw=1, color=colour(0))
    words = "Validation loss at fixed timesteps with fixed noise"
    if report.turned is not None:
        axis.axvline(report.turned, color=GREY, ls="--", lw=1)
        words += f"; dashed: step {report.turned}, where it turned"
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel("validation loss", fontsize=8)
    axis.grid(alpha=0.3)
    return chart(figure, words + ".")
