"""The survey of a folder as a table and as a page with a contact sheet."""

from __future__ import annotations

from typing import Any

from ..common.errors import shortened
from ..common.pages import Table, render
from ..common.tables import show_table
from .survey import Survey, Surveyed

SHOWN = 200  # pictures on the contact sheet: a page holds all that it shows
_CAPTIONS_SHOWN = 8


def survey_page(title: str, survey: Survey, resolution: int) -> str:
    """The whole page.

    Args:
        title: the folder's name.
        resolution: pixels per side that the crops were made for.
    """
    shown = [one for one in survey.pictures if one.crops]
    return render(
        "data/survey.html",
        title=f"What “{title}” would be trained on",
        lead=f"{summary(survey)}, at {resolution} pixels per side.",
        wrong=survey.wrong,
        notes=survey.notes,
        remarks=(
            ("picture", "remarks"),
            [(one.name, "; ".join(_remarks(one))) for one in survey.pictures if _remarks(one)],
        ),
        folders=folder_table(survey),
        buckets=bucket_table(survey),
        cards=[_card(one) for one in shown],
        left_out=len(survey.pictures) - len(shown),
        masked=any(one.learned is not None for one in shown),
        table=picture_table(survey),
    )


def summary(survey: Survey) -> str:
    """One line of counts."""
    held_out = sum(one.held_out for one in survey.pictures)
    trained = len(survey.pictures) - held_out
    masks = sum(one.learned is not None for one in survey.pictures)
    parts = [f"{trained} picture{'s' * (trained != 1)}"]
    parts += [f"{held_out} held out"] * bool(held_out)
    parts += [f"{masks} with a mask"] * bool(masks)
    return ", ".join(parts)


def print_survey(title: str, survey: Survey) -> None:
    """The tables in the terminal."""
    head, rows = picture_table(survey)
    narrow = [i for i, name in enumerate(head) if name not in ("caption", "remarks")]
    show_table(
        f"{title}: {summary(survey)}",
        [head[i] for i in narrow],
        [[row[i] for i in narrow] for row in rows],
    )
    if folders := folder_table(survey):
        show_table("What a batch holds on average", *folders)
    if len(survey.buckets) > 1:
        show_table("Sizes that are trained at", *bucket_table(survey))
    for line in survey.notes:
        print(f"note: {line}")
    for one in survey.pictures:
        for line in one.notes:
            print(f"{one.name}: {line}")
    for line in (*survey.wrong, *(line for one in survey.pictures for line in one.wrong)):
        print(f"training would stop: {line}")


def folder_table(survey: Survey) -> Table | None:
    """One row per folder; None where there is one whose pictures all count alike."""
    folders = survey.folders
    if len(folders) < 2 and all(_counts(one) is None for one in survey.pictures):
        return None
    head = ("folder", "pictures", "samples per epoch", "share of a batch", "weight of the loss")
    return head, [
        (
            one.folder + ", of the class" * one.regularisation,
            one.pictures,
            one.samples,
            f"{one.share:.1%}",
            ", ".join(f"{weight:g}" for weight in one.weights)
            + " × --prior_loss_weight" * one.regularisation,
        )
        for one in folders
    ]


def bucket_table(survey: Survey) -> Table:
    head = ("trained at", "pictures")
    return head, [(_size(size), count) for size, count in survey.buckets]


def picture_table(survey: Survey) -> Table:
    """One row per picture; columns that would be empty are left out."""
    head = ["picture", "pixels", "trained at", "blur", "counts", "mask", "file", "caption"]
    head += ["remarks"]
    rows = [_row(one) for one in survey.pictures]
    used = [i for i in range(len(head)) if i < 4 or any(row[i] is not None for row in rows)]
    return [head[i] for i in used], [[row[i] for i in used] for row in rows]


def _row(one: Surveyed) -> list[str | None]:
    return [
        one.name,
        _size(one.pixels),
        "held out" if one.held_out else _size(one.size),
        f"{one.blur:.2f}",
        _counts(one),
        None if one.learned is None else f"{one.learned:.0%}",
        ", ".join(one.file) or None,
        shortened(one.example.captions[0], 60) if one.example.captions else None,
        "; ".join(_remarks(one)) or None,
    ]


def _counts(one: Surveyed) -> str | None:
    """How often and how much a picture counts; None for once, as it is."""
    example = one.example
    parts = [f"{example.repeats} times"] * (example.repeats != 1)
    parts += [f"weight {example.weight:g}"] * (example.weight != 1)
    parts += ["of the class"] * example.regularisation
    return None if one.held_out or not parts else ", ".join(parts)


def _size(size: tuple[int, int]) -> str:
    """(height, width) as people write it, width first."""
    return f"{size[1]}×{size[0]}"


def _remarks(one: Surveyed) -> tuple[str, ...]:
    return (*one.wrong, *one.notes)


def _card(one: Surveyed) -> dict[str, Any]:
    """What the contact sheet shows of a picture."""
    captions = [f"“{shortened(caption, 200)}”" for caption in dict.fromkeys(one.example.captions)]
    more = len(captions) - _CAPTIONS_SHOWN
    return {
        "name": one.name,
        "crops": one.crops,
        "size": "held out" if one.held_out else f"{_size(one.pixels)} → {_size(one.size)}",
        "counts": _counts(one),
        "captions": captions[:_CAPTIONS_SHOWN] + [f"and {more} more"] * (more > 0),
        "remarks": _remarks(one),
    }
