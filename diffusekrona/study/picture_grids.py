"""The labelled grids of pictures that let a person see a study's effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..common.errors import UserError
from ..common.pictures import fit_picture, load_picture
from ..data.folder import find_pictures
from ..sampling.grids import labelled_grid
from .grid import Arm
from .results import Point, Results

_MOST_PROMPTS = 4


def grids_of(results: Results) -> dict[str, Image.Image]:
    """Title to grid: for each subject one of all points, or one an arm where it has two axes."""
    made = {}
    subjects = list(dict.fromkeys(name for point in results.points for name, _ in point.runs))
    for subject in subjects:
        for arm in results.study.arms:
            points = [p for p in results.of_arm(arm.label) if _run_of(p, subject) is not None]
            if not points:
                continue
            title = f"{results.study.title}, {subject}"
            title += f", {arm.label}" if len(results.study.arms) > 1 else ""
            if len(arm.axes) == 2 and not results.study.checkpoints:
                made[title] = _over_two_axes(results, arm, points, subject, title)
            else:
                made[title] = _along(results, points, subject, title)
    return made


def _run_of(point: Point, subject: str) -> int | None:
    """The point's first run of that subject."""
    return next((n for n, (name, _) in enumerate(point.runs) if name == subject), None)


def picture(results: Results, point: Point, subject: str, prompt: int) -> Image.Image | None:
    """A point's picture of a prompt: its first training seed, the first picture seed."""
    run = _run_of(point, subject)
    if run is None:
        return None
    path = point.folders[run] / point.pictures[run][prompt * len(results.judging.seeds)]
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError:
        return None


def _along(results: Results, points: Sequence[Point], subject: str, title: str) -> Image.Image:
    """A row a prompt, a column a point; before them the subject's photos and the bare base."""
    columns = [*results.of_arm("base"), *points]
    count = min(_MOST_PROMPTS, len(results.prompts))
    photos = [*photos_of(results, subject), *[None] * count]
    rows = [
        [photos[n], *(picture(results, point, subject, n) for point in columns)]
        for n in range(count)
    ]
    labels = ["photos", *("base" if p.arm == "base" else p.label() for p in columns)]
    return labelled_grid(rows, [_plain(t) for t in results.prompts[:count]], labels, title)


def photos_of(results: Results, subject: str) -> list[Image.Image]:
    """The subject's photos, cut square; none if they are no longer there."""
    try:
        paths, _ = find_pictures(Path(results.subjects[subject]))
        images = [load_picture(path) for path in paths]
    except UserError:
        return []
    return [fit_picture(image, (min(image.size),) * 2)[0] for image in images]


def _over_two_axes(
    results: Results, arm: Arm, points: Sequence[Point], subject: str, title: str
) -> Image.Image:
    """The first prompt: a column a value of the first axis, a row one of the second."""
    first, second = ([value.label for value in axis.values] for axis in arm.axes)
    by_labels = {point.labels: point for point in points}

    def cell(row: str, column: str) -> Image.Image | None:
        point = by_labels.get((column, row))
        return point and picture(results, point, subject, 0)

    rows = [[cell(row, column) for column in first] for row in second]
    columns, names = (
        [f"{axis.name} {v.label}" if v.label[0].isdigit() else v.label for v in axis.values]
        for axis in arm.axes
    )
    return labelled_grid(rows, names, columns, f"{title}: {_plain(results.prompts[0])}")


def _plain(template: str) -> str:
    """A template as a label: the subject is told by the title."""
    return template.replace("{subject}", "…").replace("{name}", "…")
