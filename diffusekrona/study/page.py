"""The page of a study, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from ..common import html_page as html
from ..common.files import slug, write_text
from ..common.tables import csv_table, markdown_table
from ..sampling.grids import save_png
from . import spread
from .charts import charts_of, spread_chart
from .picture_grids import grids_of, photos_of
from .results import Results, as_json, csv_rows, differences_table, table
from .spread import spread_table, spreads
from .yaml_files import to_yaml

_MOST_PHOTOS = 8
DIFFERENCES = (
    "Differences between runs of the same subject and training seed, picture by picture of the "
    "same prompt and picture seed; an interval without 0 tells two apart on these subjects"
)
SPREAD = (
    "How far an arm's points lie apart: 1 − cosine of each picture to the centre of its sweep in "
    "CLIP's space, and the standard deviation of the points' scores within a run"
)


def caption(results: Results) -> str:
    """What the table's numbers are."""
    judging = results.judging
    by = judging.clip + (f" and {judging.dino}" if judging.dino else "")
    count = len(results.prompts) * len(judging.seeds)
    return (
        f"{judging.base}; {count} pictures a run ({len(results.prompts)} prompts × "
        f"{len(judging.seeds)} seeds), scored by {by}: mean [95 % interval over runs, prompts, "
        "seeds]"
    )


def markdown(results: Results) -> str:
    """The study's tables for a document."""
    pieces = [f"{caption(results)}.\n", markdown_table(*table(results))]
    if (apart := differences_table(results)) and not results.study.spread:
        pieces += [f"{DIFFERENCES}.\n", markdown_table(*apart)]
    found = spreads(results) if results.study.spread else []
    if found:
        pieces += [f"{SPREAD}.\n", markdown_table(*spread_table(found))]
    if results.missing:
        titles = "; ".join(cell.title() for cell in results.missing)
        pieces.append(f"Missing runs: {titles}.\n")
    return "\n".join(pieces)


def study_page(results: Results, notes: list[str]) -> str:
    """The whole page.

    Args:
        notes: what the reader must know, such as a score that was left out.
    """
    study = results.study
    first = [html.paragraph(f"In the paper: {study.paper}")] if study.paper else []
    first += [html.paragraph(note, "warn") for note in notes]
    if results.missing:
        titles = "; ".join(cell.title() for cell in results.missing)
        first.append(html.paragraph(f"Missing runs ({len(results.missing)}): {titles}", "warn"))
    first.append(html.table(*table(results), caption(results)))
    if (apart := differences_table(results)) and not study.spread:
        first.append(html.table(*apart, DIFFERENCES))
    sections = [html.section("Scores", *first)]
    if results.trained():
        charts = html.section("Charts", *(html.chart(*c) for c in charts_of(results).values()))
        sections += [charts, *_spread(results), _photos(results), _grids(results)]
    yaml = html.text(to_yaml(study))
    sections.append(html.section("The study's declaration", f"<pre>{yaml}</pre>"))
    return html.page(study.title, study.question, sections)


def _spread(results: Results) -> list[str]:
    found = spreads(results) if results.study.spread else []
    if not found:
        return []
    words = (
        "Smaller is more stable. An arm whose runs did not learn anything would look stable too: "
        "read this beside the scores."
    )
    return [
        html.section(
            "Spread",
            html.table(*spread_table(found), SPREAD),
            html.chart(spread_chart(found), "Means with 95 % intervals over runs."),
            html.paragraph(words, "note"),
        )
    ]


def _grids(results: Results) -> str:
    width = 1150 if len(results.study.arms) == 1 else 560
    pictures = [
        html.picture(image, title, min(image.width, width))
        for title, image in grids_of(results).items()
    ]
    note = "The first training seed and the first picture seed of each: none was chosen by eye."
    pieces = [html.side_by_side(*pictures)] if len(results.study.arms) > 1 else pictures
    return html.section("Pictures", html.paragraph(note, "note"), *pieces)


def _photos(results: Results) -> str:
    rows = []
    for name in results.subjects:
        images = photos_of(results, name)
        rows.append((name, [(image, "") for image in images[:_MOST_PHOTOS]]))
    most = max(len(cells) for _, cells in rows)
    return html.section("The subjects", html.pictures_table("", [""] * most, rows, 110))


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
        write_text(folder / name, content)
    charts = charts_of(results) if results.trained() else {}
    charts |= {"spread": (spread_chart(found), "")} if found else {}
    for name, (figure, _) in charts.items():
        (folder / f"chart_{name}.png").write_bytes(html.chart_png(figure))
    for title, image in grids_of(results).items():
        save_png(image, folder / f"grid_{slug(title, 80)}.png")
    return folder / "index.html"
