"""Charts of what adapters have learned: shares, heat maps over layers, spectra, factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..adapters.groups import KINDS
from ..common.charts import colour, literal, new_chart
from .facts import Facts, LayerFacts, shares
from .lowered import Lowered
from .tables import in_order

_KINDS = ("self", "cross", "joint", "text", "feed-forward", "other")


def share_chart(facts: Sequence[Facts]) -> Any:
    """One panel per kind of group: each group's share of the summed ||delta W||^2."""
    figure, axes = new_chart(11, 2.8, 1, len(KINDS))
    for axis, kind in zip(axes[0], KINDS, strict=True):
        parts = [shares(f.layers, kind) for f in facts]
        keys = list(dict.fromkeys(key for part in parts for key in part))
        keys = in_order(kind, keys)
        width = 0.8 / len(facts)
        for number, (one, part) in enumerate(zip(facts, parts, strict=True)):
            places = [i + (number - (len(facts) - 1) / 2) * width for i in range(len(keys))]
            values = [100 * part.get(key, 0) for key in keys]
            axis.bar(places, values, width * 0.92, color=colour(number), label=literal(one.label))
        axis.set_xticks(range(len(keys)), keys, rotation=30 if len(keys) > 5 else 0)
        axis.set_title(kind, fontsize=10)
        axis.set_ylabel("% of ‖ΔW‖²", fontsize=8)
    if len(facts) > 1:  # below, so that it covers no bar
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False
        )
    return figure


def layer_maps(facts: Sequence[Facts], values: Sequence[Sequence[float]], title: str) -> Any:
    """One heat map per adapter, a number per layer: `values` in the order of `facts`."""
    layers = [x for f in facts for x in f.layers]
    rows = list(dict.fromkeys(_row(x) for x in layers))
    kinds = dict.fromkeys((x.place.attention, x.place.projection) for x in layers)
    columns = sorted(kinds, key=lambda k: (_KINDS.index(k[0]), "qkvof".find(k[1][0])))
    top = max((v for row in values for v in row), default=1) or 1
    few = len(rows) <= 24
    height = 0.9 + (0.24 if few else 0.11) * len(rows)
    figure, axes = new_chart(min(1.6 + 3.3 * len(facts), 12), height, 1, len(facts))
    annotate, images = few and len(facts) <= 3, []
    for number, (axis, one, numbers) in enumerate(zip(axes[0], facts, values, strict=True)):
        grid = torch.full((len(rows), len(columns)), float("nan"))
        for layer, value in zip(one.layers, numbers, strict=True):
            column = (layer.place.attention, layer.place.projection)
            place = rows.index(_row(layer)), columns.index(column)
            grid[place] = torch.nan_to_num(grid[place]).clamp_min(value)
        images.append(axis.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto"))
        if annotate:
            _annotate(axis, grid, top)
        labels = [f"{kind}\n{letter}" for kind, letter in columns]
        axis.set_xticks(range(len(columns)), labels, fontsize=7)
        axis.set_yticks(range(len(rows)), rows if number == 0 else [""] * len(rows))
        axis.tick_params("y", labelsize=7 if few else 4.5)
        axis.set_xlabel("attention and projection", fontsize=8)
        axis.set_title(literal(one.label), fontsize=9)
    axes[0, 0].set_ylabel("block and layer", fontsize=8)
    figure.colorbar(images[-1], ax=list(axes[0]), shrink=0.9, label=title)
    return figure


def _row(layer: LayerFacts) -> str:
    return f"{layer.place.block} {layer.place.position}".strip()


def _annotate(axis: Any, grid: torch.Tensor, top: float) -> None:
    for (row, column), value in ((tuple(p), grid[tuple(p)].item()) for p in _places(grid)):
        colour = "black" if value > 0.65 * top else "white"
        axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6, color=colour)


def _places(grid: torch.Tensor) -> list[list[int]]:
    return (~grid.isnan()).nonzero().tolist()


def spectrum_chart(facts: Sequence[Facts]) -> Any:
    """How fast singular values fall, and what the first k hold: medians over layers."""
    figure, axes = new_chart(10, 3.0, 1, 2)
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
        axes[0, 0].fill_between(index, low, high, color=colour(number), alpha=0.2, lw=0)
        style = {"color": colour(number), "marker": "o" if length < 12 else None, "ms": 3}
        axes[0, 0].plot(index, middle, label=literal(one.label), **style)
        axes[0, 1].plot(index, 100 * held.median(0).values, **style)
    for axis, title in zip(axes[0], ("σₖ / σ₁", "% of ‖ΔW‖² held by the first k"), strict=True):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("k, number of singular values", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("relative to the largest", fontsize=8)
    axes[0, 1].set_ylabel("%", fontsize=8)
    axes[0, 0].set_ylim(1e-4, 1.4)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def factor_chart(layer: LayerFacts) -> Any:
    """A layer's two factors as heat maps."""
    lora = layer.factors is None
    parts = [("up", layer.a), ("down", layer.b)] if lora else [("A", layer.a[0]), ("B", layer.b[0])]
    figure, axes = new_chart(3.9, 2.2, 1, 2)
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
    return figure


def lowered_chart(results: Sequence[Lowered]) -> Any:
    """The error of the nearest product for every pair of factors, over its parameters."""
    firsts = sorted({r.pair[0] for r in results})
    seconds = sorted({r.pair[1] for r in results})
    grid = torch.full((len(firsts), len(seconds)), float("nan"))
    for r in results:
        grid[firsts.index(r.pair[0]), seconds.index(r.pair[1])] = 100 * r.error
    figure, axes = new_chart(2.2 + 0.75 * len(seconds), 1.2 + 0.42 * len(firsts))
    axis = axes[0, 0]
    image = axis.imshow(grid, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    for r in results:
        place = seconds.index(r.pair[1]), firsts.index(r.pair[0])
        colour = "white" if r.error > 0.6 else "black"
        words = f"{100 * r.error:.0f}%\n{_short(r.parameters)}"
        axis.text(*place, words, ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(seconds)), seconds)
    axis.set_yticks(range(len(firsts)), firsts)
    axis.set_xlabel("a2, columns of A")
    axis.set_ylabel("a1, rows of A")
    figure.colorbar(image, ax=axis, label="error, % of ‖ΔW‖")
    return figure


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
