"""The page of `diffusekrona.inspect`: tables, charts and heat maps of what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..common import html_page as html
from .factors import chosen_layers, factor_section, lowered_section
from .facts import Facts, effective_rank, shares
from .lowered import Lowered
from .tables import GROUPS, LAYER_HEAD, layer_rows, share_tables, totals

COLOURS = ("#3566b8", "#d9822b", "#3a9a5b", "#b4428f", "#7a6cc4", "#8a8f98")
_KINDS = ("self", "cross", "text", "feed-forward", "other")


def inspection_page(
    facts: Sequence[Facts],
    results: Sequence[Sequence[Lowered]],
    count: int = 3,
    names: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        results: of `lowered`, one for each adapter.
        count: how many layers' factors are drawn: those that changed most in the first adapter.
        names: layers, or ends of their names, to draw instead.

    Raises:
        UserError: a name that fits no layer.
    """
    sections = [
        html.section("Adapters", html.table(*totals(facts))),
        _share_section(facts),
        _map_section(facts),
        _spectrum_section(facts),
        factor_section(facts, chosen_layers(facts[0], count, names)),
        *(lowered_section(f, r) for f, r in zip(facts, results, strict=True)),
        html.section(
            "Every layer",
            *(html.folded(f.label, html.table(LAYER_HEAD, layer_rows(f))) for f in facts),
        ),
    ]
    lead = "What each adapter changes: ‖·‖ is the Frobenius norm, ΔW what the adapter adds to W."
    return html.page("Inside " + ", ".join(f.label for f in facts), lead, sections)


def _share_section(facts: Sequence[Facts]) -> str:
    figure, axes = html.new_chart(11, 2.8, 1, len(GROUPS))
    for axis, attribute in zip(axes[0], GROUPS, strict=True):
        parts = [shares(f.layers, attribute) for f in facts]
        keys = list(dict.fromkeys(key for part in parts for key in part))
        if attribute == "projection":
            keys.sort(key="QKVO".find)
        width = 0.8 / len(facts)
        for number, (one, part) in enumerate(zip(facts, parts, strict=True)):
            places = [i + (number - (len(facts) - 1) / 2) * width for i in range(len(keys))]
            values = [100 * part.get(key, 0) for key in keys]
            axis.bar(places, values, width * 0.92, color=_colour(number), label=one.label)
        axis.set_xticks(range(len(keys)), keys, rotation=30 if len(keys) > 5 else 0)
        axis.set_title(attribute, fontsize=10)
        axis.set_ylabel("% of ‖ΔW‖²", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    tables = [html.table(head, rows) for head, rows in share_tables(facts).values()]
    return html.section(
        "Where the change is",
        html.chart(
            figure, "Parts of the summed ‖ΔW‖². In the tables, parts of the parameters in brackets."
        ),
        html.side_by_side(*tables),
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


# --- heat maps over layers ------------------------------------------------------------------------


def _map_section(facts: Sequence[Facts]) -> str:
    relative = all(layer.base_norm for f in facts for layer in f.layers)
    size = [[x.relative * 100 if relative else x.norm for x in f.layers] for f in facts]
    ranks = [[effective_rank(x.singular) for x in f.layers] for f in facts]
    title = "‖ΔW‖ / ‖W‖ in %" if relative else "‖ΔW‖"
    return html.section(
        "Layer by layer",
        _maps(facts, size, title),
        _maps(facts, ranks, "effective rank of ΔW"),
        html.paragraph(
            "Rows are the transformer layers from input to output, columns the projections of "
            "self- and cross-attention. All maps of one kind share a colour scale.",
            "note",
        ),
    )


def _maps(facts: Sequence[Facts], values: Sequence[Sequence[float]], title: str) -> str:
    layers = [x for f in facts for x in f.layers]
    rows = list(dict.fromkeys(x.place for x in layers))
    kinds = dict.fromkeys((x.attention, x.projection) for x in layers)
    columns = sorted(kinds, key=lambda k: (_KINDS.index(k[0]), "QKVOF".find(k[1][0])))
    top = max((v for row in values for v in row), default=1) or 1
    few = len(rows) <= 24
    height = 0.9 + (0.24 if few else 0.11) * len(rows)
    figure, axes = html.new_chart(min(1.6 + 3.3 * len(facts), 12), height, 1, len(facts))
    annotate = few and len(facts) <= 3
    for number, (axis, one, numbers) in enumerate(zip(axes[0], facts, values, strict=True)):
        grid = torch.full((len(rows), len(columns)), float("nan"))
        for layer, value in zip(one.layers, numbers, strict=True):
            place = rows.index(layer.place), columns.index((layer.attention, layer.projection))
            grid[place] = torch.nan_to_num(grid[place]).clamp_min(value)
        image = axis.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        if annotate:
            _annotate(axis, grid, top)
        labels = [f"{kind}\n{letter}" for kind, letter in columns]
        axis.set_xticks(range(len(columns)), labels, fontsize=7)
        axis.set_yticks(range(len(rows)), rows if number == 0 else [""] * len(rows))
        axis.tick_params("y", labelsize=7 if few else 4.5)
        axis.set_title(one.label, fontsize=9)
    figure.colorbar(image, ax=list(axes[0]), shrink=0.9, label=title)
    return html.chart(figure, title)


def _annotate(axis: Any, grid: torch.Tensor, top: float) -> None:
    for (row, column), value in ((tuple(p), grid[tuple(p)].item()) for p in _places(grid)):
        colour = "black" if value > 0.65 * top else "white"
        axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6, color=colour)


def _places(grid: torch.Tensor) -> list[list[int]]:
    return (~grid.isnan()).nonzero().tolist()


# --- spectra --------------------------------------------------------------------------------------


def _spectrum_section(facts: Sequence[Facts]) -> str:
    figure, axes = html.new_chart(10, 3.0, 1, 2)
    for number, one in enumerate(facts):
        live = [x.singular for x in one.layers if x.norm > 0]
        if not live:
            continue
        length = max(map(len, live))
        padded = torch.stack([torch.nn.functional.pad(s, (0, length - len(s))) for s in live])
        falling = padded / padded[:, :1]
        low, middle, high = falling.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
        held = padded.square().cumsum(1) / padded.square().sum(1, keepdim=True)
        index = range(1, length + 1)
        axes[0, 0].fill_between(index, low, high, color=_colour(number), alpha=0.2, lw=0)
        marker = "o" if length < 12 else None
        axes[0, 0].plot(index, middle, color=_colour(number), marker=marker, ms=3, label=one.label)
        axes[0, 1].plot(
            index, 100 * held.median(0).values, color=_colour(number), marker=marker, ms=3
        )
    for axis, title in zip(axes[0], ("σₖ / σ₁", "% of ‖ΔW‖² held by the first k"), strict=True):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("k", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(1e-4, 1.4)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return html.section(
        "Singular values of ΔW",
        html.chart(figure, "Median over layers; the band holds the middle half of them."),
        html.paragraph(
            "Those of A ⊗ B are the products of A's and B's. The rank that holds 90 or 99 % of "
            "‖ΔW‖² is the rank that a LoRA would need to say the same.",
            "note",
        ),
    )
