"""The page of a study, and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..common.charts import chart, chart_png
from ..common.files import slugs
from ..common.own_files import write_result
from ..common.pages import render
from ..common.tables import csv_table, markdown_table
from ..sampling.grids import save_png
from . import spread
from .best import best_of_arms, best_table
from .charts import charts_of, spread_chart
from .picture_grids import grids_of
from .results import Results, csv_rows, differences_table, table
from .results_file import as_json
from .spread import spread_table, spreads
from .tolerance import tolerance_table, tolerances
from .yaml_files import to_yaml

DIFFERENCES = (
    "Differences between runs of the same subject and training seed, picture by picture of the "
    "same prompt and picture seed, with 95 % intervals over subjects. *: differs from 0 after "
    "correction for all comparisons of the table (permutation of signs by subject, largest "
    "effect)"
)
SPREAD = (
    "How far apart an arm's points are: 1 − cosine of each picture to the centre of its sweep in "
    "CLIP's space, and the standard deviation of the points' scores within a run"
)
SPREAD_CHART = "Means with 95 % intervals over subjects."
TOLERANCE = (
    "Learning rates around the best one at which the mean score is at least 90 % of the best of "
    "that row, interpolated between those that were tried; ≤ and ≥: the range ends where the grid "
    "does. all: every score at once"
)
BEST = (
    "Each arm at its best: for every subject the point that the other subjects choose (by the "
    "geometric mean of likeness, the mean of CLIP-I and DINO, and CLIP-T), then differences, with "
    "95 % intervals over subjects; *: differs from 0 after correction for all of them"
)


def caption(results: Results) -> str:
    """What the table's numbers are."""
    scoring = results.scoring
    by = ", ".join(filter(None, (scoring.clip, scoring.dino, scoring.reader)))
    count = len(results.prompts) * len(scoring.seeds)
    sampler = f", drawn with {scoring.scheduler}" if scoring.scheduler else ""
    against = " against held-out photos" if results.held_out else ""
    return (
        f"{scoring.base}; {count} pictures per run ({len(results.prompts)} prompts × "
        f"{len(scoring.seeds)} seeds{sampler}), scored by {by}{against}: mean [95 % interval over "
        f"{_units(results)}]"
    )


def _units(results: Results) -> str:
    """What the intervals are over: the outermost level with several members."""
    if (count := len(results.subjects)) > 1:
        return f"{count} subjects"
    several = any(len(point.runs) > 1 for point in results.points)
    return "training seeds of one subject" if several else "prompts"


def markdown(results: Results) -> str:
    """The study's tables for a document."""
    pieces = [f"{caption(results)}.\n", markdown_table(*table(results))]
    if (apart := differences_table(results)) and not results.study.spread:
        pieces += [f"{DIFFERENCES}.\n", markdown_table(*apart)]
    found = spreads(results) if results.study.spread else []
    if found:
        pieces += [f"{SPREAD}.\n", markdown_table(*spread_table(found))]
    if rates := tolerances(results):
        pieces += [f"{TOLERANCE}.\n", markdown_table(*tolerance_table(rates))]
    if arms := best_of_arms(results):
        pieces += [f"{BEST}.\n", markdown_table(*best_table(arms))]
    if results.missing:
        pieces.append(f"Missing runs: {_missing(results)}.\n")
    return "\n".join(pieces)


def study_page(results: Results, notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        notes: what the reader must know, such as a score that was left out.
    """
    study = results.study
    trained = bool(results.trained())
    found = spreads(results) if study.spread else []
    return render(
        "study/page.html",
        title=study.title,
        lead=study.question,
        paper=study.paper,
        notes=[*notes, *_warnings(results)],
        scores=table(results),
        caption=caption(results),
        differences=None if study.spread else differences_table(results),
        differences_caption=DIFFERENCES,
        charts=[chart(*pair) for pair in charts_of(results).values()] if trained else [],
        spread=spread_table(found) if found else None,
        spread_caption=SPREAD,
        spread_chart=chart(spread_chart(found), SPREAD_CHART) if found else None,
        tolerance=tolerance_table(rates) if (rates := tolerances(results)) else None,
        tolerance_caption=TOLERANCE,
        best=best_table(arms) if (arms := best_of_arms(results)) else None,
        best_caption=BEST,
        grids=grids_of(results),
        yaml=to_yaml(study),
    )


def _warnings(results: Results) -> list[str]:
    """Runs that are missing, and points with only one run."""
    warnings = []
    if results.missing:
        warnings.append(f"Missing runs ({len(results.missing)}): {_missing(results)}")
    counts = [len(point.runs) for point in results.trained()]
    if counts and max(counts) == 1:
        warnings.append(
            "One training run (one subject, one training seed) per row: the intervals cover "
            "prompts and pictures, not the variation between runs."
        )
    return warnings


def _missing(results: Results) -> str:
    return "; ".join(results.missing)


def write_results(results: Results, folder: Path, notes: list[str]) -> Path:
    """Write tables, page, charts and grids; returns the page's path."""
    found = spreads(results) if results.study.spread else []
    contents = {
        "study.yaml": to_yaml(results.study),
        "results.json": json.dumps({**as_json(results), "spread": spread.as_json(found)}, indent=1),
        "results.csv": csv_table(*csv_rows(results)),
        "results.md": markdown(results) + "".join(f"\n{note}\n" for note in notes),
        "index.html": study_page(results, notes),
    }
    for name, content in contents.items():
        write_result(folder / name, content)
    charts = charts_of(results) if results.trained() else {}
    charts |= {"spread": (spread_chart(found), "")} if found else {}
    for name, (figure, _) in charts.items():
        write_result(folder / f"chart_{name}.png", chart_png(figure))
    grids = list(grids_of(results))
    for grid, name in zip(grids, slugs((grid.title for grid in grids), 80), strict=True):
        save_png(grid.image(), folder / f"grid_{name}.png")
    return folder / "index.html"
