"""The page of `diffusekrona.inspect`: tables, charts and heat maps of what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.charts import Chart, chart
from ..common.errors import UserError
from ..common.pages import render
from .charts import factor_chart, layer_maps, lowered_chart, share_chart, spectrum_chart
from .facts import Facts, LayerFacts, effective_rank
from .lowered import Lowered, smaller
from .switched import Shown
from .tables import LAYER_HEAD, LOWERED_HEAD, layer_rows, lowered_rows, share_tables, totals

_MOST_DRAWN = 24  # layers whose factors are drawn


def inspection_page(
    facts: Sequence[Facts],
    results: Sequence[Sequence[Lowered]],
    count: int = 3,
    names: Sequence[str] = (),
    drawn: Sequence[Shown] = (),
) -> str:
    """The whole page.

    Args:
        results: of `lowered`, one for each adapter.
        count: how many layers' factors are drawn: those that changed most in the first adapter.
        names: layers, or ends of their names, to draw instead.
        drawn: of `show_groups` and `show_words`.

    Raises:
        UserError: a name that fits no layer.
    """
    return render(
        "inspection/page.html",
        title="Inside " + ", ".join(f.label for f in facts),
        lead="What each adapter changes: ‖·‖ is the Frobenius norm, ΔW what the adapter adds to W.",
        totals=totals(facts),
        relative=_relative(facts),
        drawn=drawn,
        share_chart=chart(share_chart(facts), "Shares of the summed ‖ΔW‖²."),
        shares=list(share_tables(facts).values()),
        maps=_maps(facts),
        spectrum=chart(
            spectrum_chart(facts), "Median over layers; the band holds the middle half of them."
        ),
        factors=[(n, _factors(facts, n)) for n in chosen_layers(facts[0], count, names)],
        lowered=[_lowered(one, outcome) for one, outcome in zip(facts, results, strict=True)],
        layers=[(f.label, (LAYER_HEAD, layer_rows(f))) for f in facts],
    )


def chosen_layers(facts: Facts, count: int, names: Sequence[str]) -> list[str]:
    """Full names of the layers to draw. Raises UserError for a name that fits no layer."""
    if names:
        chosen = [x.name for x in facts.layers if any(x.name.endswith(name) for name in names)]
        if not chosen:
            raise UserError(f"No layer of {facts.label} is named {names[0]}: see --layers.")
        return chosen[:_MOST_DRAWN]
    order = sorted(facts.layers, key=lambda x: -(x.norm if x.relative is None else x.relative))
    return [x.name for x in order[:count]]


def _relative(facts: Sequence[Facts]) -> bool:
    return all(layer.base_norm for f in facts for layer in f.layers)


def _size(layer: LayerFacts, relative: bool) -> float:
    return 100 * layer.relative if relative and layer.relative is not None else layer.norm


def _maps(facts: Sequence[Facts]) -> list[Chart]:
    relative = _relative(facts)
    size = [[_size(x, relative) for x in f.layers] for f in facts]
    ranks = [[effective_rank(x.singular) for x in f.layers] for f in facts]
    title = "‖ΔW‖ / ‖W‖ in %" if relative else "‖ΔW‖"
    maps = ((size, title), (ranks, "effective rank of ΔW"))
    return [chart(layer_maps(facts, values, title), title) for values, title in maps]


def _factors(facts: Sequence[Facts], name: str) -> list[Chart]:
    """A chart for each adapter that has the layer of that name."""
    return [
        chart(
            factor_chart(x),
            f"{f.label}: ‖ΔW‖ {x.norm:.3g}, effective rank {effective_rank(x.singular):.3g}",
        )
        for f in facts
        for x in f.layers
        if x.name == name
    ]


def _lowered(facts: Facts, results: Sequence[Lowered]) -> dict[str, Any]:
    words = "Error of the nearest product, over the number of parameters in all layers."
    return {
        "label": facts.label,
        "parameters": f"{facts.parameters:,}",
        "chart": chart(lowered_chart(results), words) if results else None,
        "table": (LOWERED_HEAD, lowered_rows(facts, smaller(facts, results))),
    }
