"""The labelled grids of pictures that let a person see a study's effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..common.errors import UserError
from ..common.pictures import load_square, open_png
from ..data.folder import find_pictures
from ..sampling.grids import Grid
from .grid import Arm, Axis
from .results import Point, Results

_MOST_PROMPTS = 4


def grids_of(results: Results) -> list[Grid]:
    """For each subject one grid of all points, or one per arm where it has two axes."""
    made = []
    subjects = list(dict.fromkeys(name for point in results.points for name, _ in point.runs))
    for subject in subjects:
        photos = photos_of(results, subject)
        for arm in results.study.arms:
            points = [p for p in results.of_arm(arm.label) if _run_of(p, subject) is not None]
            if not points:
                continue
            title = f"{results.study.title}, {subject}"
            title += f", {arm.label}" if len(results.study.arms) > 1 else ""
            over_two = len(arm.axes) == 2 and not results.study.checkpoints
            layout = _over_two_axes if over_two else _along
            made.append(layout(results, arm, points, subject, title).with_photos(photos))
    return made


def _run_of(point: Point, subject: str) -> int | None:
    """The point's first run of that subject."""
    return next((n for n, (name, _) in enumerate(point.runs) if name == subject), None)


def picture(results: Results, point: Point, subject: str, prompt: int) -> Image.Image | None:
    """A point's picture of a prompt: its first training seed, the first picture seed."""
    run = _run_of(point, subject)
    if run is None:
        return None
    path = point.folders[run] / point.pictures[run][prompt * len(results.scoring.seeds)]
    try:
        with open_png(path) as image:
            return image.convert("RGB")
    except Exception:  # Pillow meets damaged files with errors of many kinds
        return None


def _along(results: Results, arm: Arm, points: Sequence[Point], subject: str, title: str) -> Grid:
    """One row per prompt, one column per point, before them the bare base."""
    columns = [*results.of_arm("base"), *points]
    rows = (
        (_plain(text), tuple(picture(results, point, subject, n) for point in columns))
        for n, text in enumerate(results.prompts[:_MOST_PROMPTS])
    )
    labels = ("base" if p.arm == "base" else p.label() for p in columns)
    return Grid(title, tuple(labels), tuple(rows))


def photos_of(results: Results, subject: str) -> list[Image.Image]:
    """The subject's photos, cut square; none if they no longer exist."""
    try:
        paths, _ = find_pictures(Path(results.subjects[subject]))
        return [load_square(path) for path in paths]
    except UserError:
        return []


def _over_two_axes(
    results: Results, arm: Arm, points: Sequence[Point], subject: str, title: str
) -> Grid:
    """The first prompt: one column per value of the first axis, one row per value of the second."""
    by_labels = {point.labels: point for point in points}

    def cell(*labels: str) -> Image.Image | None:
        point = by_labels.get(labels)
        return point and picture(results, point, subject, 0)

    def shown(axis: Axis, label: str) -> str:
        return f"{axis.name} {label}" if label[0].isdigit() else label

    first, second = arm.axes
    rows = (
        (shown(second, row.label), tuple(cell(column.label, row.label) for column in first.values))
        for row in second.values
    )
    columns = (shown(first, column.label) for column in first.values)
    return Grid(f"{title}: {_plain(results.prompts[0])}", tuple(columns), tuple(rows))


def _plain(template: str) -> str:
    """A template as a label: the title names the subject."""
    return template.replace("{subject}", "…").replace("{name}", "…")
