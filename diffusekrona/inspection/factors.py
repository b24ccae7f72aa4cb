"""Two sections of the page: the factors themselves, and what smaller ones would miss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..common import html_page as html
from ..common.errors import UserError
from .facts import Facts, LayerFacts, effective_rank
from .lowered import Lowered, smaller
from .tables import LOWERED_HEAD, lowered_rows


def chosen_layers(facts: Facts, count: int, names: Sequence[str]) -> list[str]:
    """Full names of the layers to draw."""
    if names:
        chosen = [x.name for x in facts.layers if any(x.name.endswith(name) for name in names)]
        if not chosen:
            raise UserError(f"No layer of {facts.label} is named {names[0]}: see --layers.")
        return chosen[:24]
    order = sorted(facts.layers, key=lambda x: -(x.norm if x.relative is None else x.relative))
    return [x.name for x in order[:count]]


def factor_section(facts: Sequence[Facts], names: Sequence[str]) -> str:
    pieces = []
    for name in names:
        pieces.append(html.heading(name))
        layers = [(f, x) for f in facts for x in f.layers if x.name == name]
        pieces.append(html.side_by_side(*(_factors(f.label, x) for f, x in layers)))
    note = "Red is positive, blue negative, white zero; each map has a scale of its own. "
    note += "A LoRA's factors lie side by side as up and down."
    return html.section("Factors", html.paragraph(note, "note"), *pieces)


def _factors(label: str, layer: LayerFacts) -> str:
    lora = layer.factors is None
    parts = [("up", layer.a), ("down", layer.b)] if lora else [("A", layer.a[0]), ("B", layer.b[0])]
    figure, axes = html.new_chart(3.9, 2.2, 1, 2)
    for axis, (name, factor) in zip(axes[0], parts, strict=True):
        top = factor.abs().max().item() or 1.0
        # Long thin factors are stretched, or nothing of them could be seen.
        image = axis.imshow(
            factor, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest"
        )
        axis.set_title(f"{name}  {factor.shape[0]}×{factor.shape[1]}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(image, ax=axis, shrink=0.85).ax.tick_params(labelsize=6)
    words = f"{label}: ‖ΔW‖ {layer.norm:.3g}, effective rank {effective_rank(layer.singular):.3g}"
    return html.chart(figure, words)


def lowered_section(facts: Facts, results: Sequence[Lowered]) -> str:
    title = f"{facts.label}: what its factors could be lowered to"
    if not results:
        return html.section(title, html.paragraph("No pair that was tried divides every layer."))
    firsts = sorted({r.pair[0] for r in results})
    seconds = sorted({r.pair[1] for r in results})
    grid = torch.full((len(firsts), len(seconds)), float("nan"))
    for r in results:
        grid[firsts.index(r.pair[0]), seconds.index(r.pair[1])] = 100 * r.error
    figure, axes = html.new_chart(2.2 + 0.75 * len(seconds), 1.2 + 0.42 * len(firsts))
    axis = axes[0, 0]
    image = axis.imshow(grid, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    for r in results:
        place = seconds.index(r.pair[1]), firsts.index(r.pair[0])
        colour = "white" if r.error > 0.6 else "black"
        words = f"{100 * r.error:.0f}%\n{_short(r.parameters)}"
        axis.text(*place, words, ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(seconds)), seconds)
    axis.set_yticks(range(len(firsts)), firsts)
    axis.set_xlabel("a2")
    axis.set_ylabel("a1")
    figure.colorbar(image, ax=axis, label="missed of ‖ΔW‖, %")
    rows = lowered_rows(facts, smaller(facts, results))
    below = html.table(LOWERED_HEAD, rows) if rows else html.paragraph("None has fewer parameters.")
    return html.section(
        title,
        html.side_by_side(
            html.chart(figure, "Error of the nearest product, and parameters in all."), below
        ),
        html.paragraph(
            f"Now {facts.parameters:,} parameters. The nearest Kronecker product with another "
            "(a1, a2) in every layer; the error is ‖ΔW − nearest‖ / ‖ΔW‖ over all layers. 0 % "
            "means that the smaller adapter would say the same; one trained anew at that size may "
            "do better than this.",
            "note",
        ),
    )


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
