"""What each group of layers, and each row of A, does to pictures: drawn with it alone, and off.

A group's share of ||delta W||^2 says little of what it does: one with half of it may change nothing
that is seen, one with a quarter may carry the subject. Pictures of the same seeds show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ..adapters.file import Adapter, put_adapter
from ..adapters.groups import KINDS, GroupWeights, set_group_weights
from ..common.pages import Table
from ..sampling.grids import Grid
from ..sampling.pipeline import generate
from .facts import Facts, shares
from .rows import band_count, band_shares, weighted_rows
from .tables import in_order
from .terms import keep_terms

SHARES = (0.5, 0.9, 0.99)  # of ||delta W||^2, that the terms of the last rows hold
Score = Callable[[Sequence[Image.Image]], Mapping[str, float]]  # metric's title to its mean


@dataclass(frozen=True)
class Drawn:
    """Pictures, one per seed, and the means of their scores."""

    images: list[Image.Image]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Switched:
    """A group drawn alone and left out. `kind` and `group` are "" for the whole adapter, where
    `off` is the bare base; rows of A are groups too, of kind "rows"."""

    kind: str
    group: str
    share: float
    alone: Drawn
    off: Drawn


@dataclass(frozen=True)
class Sheet:
    """What `draw_sheet` found.

    Attributes:
        groups: the whole adapter first.
        terms: (share of ||delta W||^2, terms kept, of how many, pictures).
    """

    prompt: str
    seeds: tuple[int, ...]
    groups: list[Switched]
    terms: list[tuple[float, int, int, Drawn]] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """What was drawn with an adapter, for the page, the terminal and JSON.

    Attributes:
        kind: "groups" or "words".
        numbers: by name.
    """

    kind: str
    grid: Grid
    table: Table
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """How the pictures are drawn; `size` is (height, width) in pixels, None the base's own."""

    prompt: str
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 20
    guidance: float = 7.0
    size: tuple[int, int] | None = None


def show_groups(
    make_pipeline: Callable[[], Any],
    adapter: Adapter,
    facts: Facts,
    drawing: Drawing,
    score: Score,
    photos: Sequence[Image.Image] = (),
) -> Shown:
    """`draw_sheet`, with the subject's photos in the first column."""
    sheet = draw_sheet(make_pipeline, adapter, facts, drawing, score)
    grid = sheet_grid(sheet, facts.label).with_photos(photos)
    return Shown("groups", grid, sheet_table(sheet), sheet_json(sheet))


def draw_sheet(
    make_pipeline: Callable[[], Any],
    adapter: Adapter,
    facts: Facts,
    drawing: Drawing,
    score: Score,
    progress: bool = True,
) -> Sheet:
    """Draw everything on and off, each group and each row of A alone and off, and the adapter with
    fewer terms.

    Args:
        make_pipeline: loads the base; called once per adapter that is put on it.
        facts: of the same adapter.
    """
    pipeline = make_pipeline()
    put_adapter(pipeline, adapter, "all")
    variants = list(_variants(facts))
    bands = band_count(facts)
    total = 2 * (len(variants) + bands) + len(SHARES)
    with tqdm(total=total, desc="groups", unit="variant", disable=not progress) as bar:

        def draw(pipeline: Any) -> Drawn:
            count = len(drawing.seeds)
            images = generate(
                pipeline, [drawing.prompt] * count, drawing.seeds, steps=drawing.steps,
                guidance=drawing.guidance, size=drawing.size, batch_size=min(count, 4),
                progress=False,
            )  # fmt: skip
            bar.update()
            return Drawn(images, dict(score(images)))

        groups = []
        for kind, group, share, alone, off in variants:
            set_group_weights(pipeline, "all", alone)
            drawn = draw(pipeline)
            set_group_weights(pipeline, "all", off)
            groups.append(Switched(kind, group, share, drawn, draw(pipeline)))
        set_group_weights(pipeline, "all", GroupWeights())
        for band, share in enumerate(band_shares(facts, bands)):
            only = [float(other == band) for other in range(bands)]
            with weighted_rows(pipeline, "all", only):
                drawn = draw(pipeline)
            with weighted_rows(pipeline, "all", [1 - weight for weight in only]):
                off = draw(pipeline)
            groups.append(Switched("rows", f"{band + 1}/{bands}", share, drawn, off))
        terms = []
        for share in SHARES:
            kept = keep_terms(adapter, facts, share)
            pipeline = make_pipeline()
            put_adapter(pipeline, kept.adapter, "kept")
            terms.append((share, kept.terms, kept.of, draw(pipeline)))
    return Sheet(drawing.prompt, drawing.seeds, groups, terms)


def _variants(facts: Facts) -> Iterator[tuple[str, str, float, GroupWeights, GroupWeights]]:
    """(kind, group, its share of ||delta W||^2, weights with it alone, weights without it)."""
    every = {kind: in_order(kind, list(shares(facts.layers, kind))) for kind in KINDS}
    nothing = GroupWeights(blocks=dict.fromkeys(every["blocks"], 0.0))
    yield "", "", 1.0, GroupWeights(), nothing
    for kind in KINDS:
        parts = shares(facts.layers, kind)
        for group in every[kind] if len(every[kind]) > 1 else ():
            others = {other: 0.0 for other in every[kind] if other != group}
            yield (
                kind, group, parts[group], GroupWeights(**{kind: others}),
                GroupWeights(**{kind: {group: 0.0}}),
            )  # fmt: skip


def sheet_grid(sheet: Sheet, title: str) -> Grid:
    """One row per group: its pictures alone, then those without it."""
    rows: list[tuple[str, tuple[Image.Image | None, ...]]]
    rows = [(_row_title(one), (*one.alone.images, *one.off.images)) for one in sheet.groups]
    blank = (None,) * len(sheet.seeds)
    rows += [
        (f"{terms:,} of {of:,} terms, {share:.0%} of ‖ΔW‖²", (*drawn.images, *blank))
        for share, terms, of, drawn in sheet.terms
    ]
    columns = [f"{what}, seed {seed}" for what in ("alone", "off") for seed in sheet.seeds]
    return Grid(f"{title}: {sheet.prompt}", tuple(columns), tuple(rows))


def _row_title(one: Switched) -> str:
    return f"{_name(one)}, {one.share:.0%} of ‖ΔW‖²" if one.group else _name(one)


def _name(one: Switched) -> str:
    if not one.group:
        return "the whole adapter"
    if one.kind == "rows":
        return f"rows of A, {one.group}"
    return f"{one.kind.removesuffix('s')} {one.group}"


def sheet_table(sheet: Sheet) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a group's share of the norm beside the score that is lost without it, and
    what it scores alone."""
    whole = sheet.groups[0].alone.scores
    names = list(whole)
    head = ["drawn", "share of ‖ΔW‖²", *(f"{n} alone" for n in names)]
    head += [f"{n} lost when off" for n in names]
    rows = []
    for one in sheet.groups:
        alone = [f"{one.alone.scores[n]:.3f}" for n in names]
        lost = [f"{whole[n] - one.off.scores[n]:+.3f}" for n in names]
        rows.append([_name(one), f"{one.share:.1%}", *alone, *lost])
    for share, terms, of, drawn in sheet.terms:
        alone = [f"{drawn.scores[n]:.3f}" for n in names]
        name = f"{terms:,} of {of:,} singular terms"
        rows.append([name, f"{share:.0%}", *alone, *["–"] * len(names)])
    return head, rows


def sheet_json(sheet: Sheet) -> dict[str, Any]:
    """Every number of a sheet."""
    return {
        "prompt": sheet.prompt,
        "seeds": list(sheet.seeds),
        "groups": [
            {"kind": one.kind, "group": one.group, "share": one.share,
             "alone": dict(one.alone.scores), "off": dict(one.off.scores)}
            for one in sheet.groups
        ],
        "terms": [
            {"share": share, "terms": terms, "of": of, "scores": dict(drawn.scores)}
            for share, terms, of, drawn in sheet.terms
        ],
    }  # fmt: skip
