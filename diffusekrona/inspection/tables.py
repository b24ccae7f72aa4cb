"""What `diffusekrona.inspect` shows, as tables of text: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from ..adapters.groups import KINDS
from ..adapters.norms import norms_in
from ..common.tables import show_table
from .facts import Facts, effective_rank, rank_holding, shares
from .lowered import Lowered, smaller

LAYER_HEAD = ["layer", "out×in", "factors", "‖ΔW‖", "‖ΔW‖/‖W‖", "σ₁", "eff. rank", "of A", "of B"]
LOWERED_HEAD = ["(a1, a2)", "parameters", "relative size", "error", "worst layer"]


def totals(facts: Sequence[Facts]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that compares whole adapters, one column per adapter."""
    rows: dict[str, list[str]] = {}

    def add(name: str, values: Sequence[Any]) -> None:
        rows[name] = [str(value) for value in values]

    add("method", [f.method for f in facts])
    add("factors or rank", [_sizes(f) for f in facts])
    add("learning rate", [f.metadata.get("learning_rate", "–") for f in facts])
    add("steps", [f.metadata.get("steps", "–") for f in facts])
    add("layers", [len(f.layers) for f in facts])
    add("parameters", [f"{f.parameters:,}" for f in facts])
    add("‖ΔW‖, all layers", [f"{f.norm:.4g}" for f in facts])
    if all(layer.base_norm for f in facts for layer in f.layers):
        relative = [[x.relative for x in f.layers if x.relative is not None] for f in facts]
        add("‖ΔW‖ / ‖W‖, median", [f"{median(own):.3%}" for own in relative])
        add("‖ΔW‖ / ‖W‖, largest", [f"{max(own):.3%}" for own in relative])
    elif all(norms := [norms_in(f.metadata) for f in facts]):
        for name in ("median", "largest"):
            add(f"‖ΔW‖ / ‖W‖, {name}", [f"{one[name]:.3%}" for one in norms if one])
    for title, number in (
        ("highest rank it can have", lambda x: x.rank_limit),
        ("effective rank", lambda x: effective_rank(x.singular)),
        ("rank with 90% of ‖ΔW‖²", lambda x: rank_holding(x.singular, 0.9)),
        ("rank with 99% of ‖ΔW‖²", lambda x: rank_holding(x.singular, 0.99)),
    ):
        add(f"{title}, median", [f"{median(map(number, f.layers)):.4g}" for f in facts])
    for factor in "ab":
        spectra = [[getattr(x, f"singular_{factor}") for x in f.layers] for f in facts]
        shown = [_median_rank(own) for own in spectra]
        if set(shown) != {"–"}:
            add(f"effective rank of {factor.upper()}, median", shown)
    return ["", *(f.label for f in facts)], [[name, *cells] for name, cells in rows.items()]


def _median_rank(spectra: Sequence[torch.Tensor | None]) -> str:
    ranks = [effective_rank(one) for one in spectra if one is not None]
    return f"{median(ranks):.4g}" if ranks and len(ranks) == len(spectra) else "–"


def _sizes(facts: Facts) -> str:
    sizes = (
        f"{layer.factors[0]}×{layer.factors[1]}" if layer.factors else f"r = {layer.rank_limit}"
        for layer in facts.layers
    )
    return ", ".join(dict.fromkeys(sizes))


def share_tables(facts: Sequence[Facts]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Group to head and rows: its share of ‖ΔW‖², its share of the parameters in brackets."""
    tables = {}
    for kind in KINDS:
        parts = [shares(f.layers, kind) for f in facts]
        keys = list(dict.fromkeys(key for part in parts for key in part))
        keys = in_order(kind, keys)
        rows = []
        for key in keys:
            cells = []
            for one, part in zip(facts, parts, strict=True):
                count = sum(x.parameters for x in one.layers if x.place.group(kind) == key)
                cells.append(f"{part.get(key, 0):.1%} ({count / one.parameters:.1%})")
            rows.append([key, *cells])
        tables[kind] = ([kind, *(f.label for f in facts)], rows)
    return tables


def in_order(kind: str, groups: Sequence[str]) -> list[str]:
    """Groups as tables and charts show them: projections as q, k, v, o."""
    return sorted(groups, key="qkvoff".find) if kind == "projections" else list(groups)


def layer_rows(facts: Facts) -> list[list[str]]:
    """One row per layer, under LAYER_HEAD."""
    rows = []
    for x in facts.layers:
        spectra = (x.singular, x.singular_a, x.singular_b)
        ranks = ["–" if s is None else f"{effective_rank(s):.3g}" for s in spectra]
        size = f"{x.factors[0]}×{x.factors[1]}" if x.factors else f"r={x.rank_limit}"
        row = [x.name, f"{x.shape[0]}×{x.shape[1]}", size, f"{x.norm:.4g}"]
        row += ["–" if x.relative is None else f"{x.relative:.3%}", f"{x.singular[0].item():.4g}"]
        rows.append(row + ranks)
    return rows


def lowered_rows(facts: Facts, results: Sequence[Lowered]) -> list[list[str]]:
    """One row per pair of factors, under LOWERED_HEAD."""
    rows = []
    for r in results:
        size = [f"({r.pair[0]}, {r.pair[1]})", f"{r.parameters:,}"]
        parts = (r.parameters / facts.parameters, r.error, r.worst)
        rows.append([*size, f"{parts[0]:.0%}", f"{parts[1]:.1%}", f"{parts[2]:.1%}"])
    return rows


def print_tables(facts: Sequence[Facts], results: Sequence[Sequence[Lowered]], every: bool) -> None:
    """The terminal's view."""
    show_table("Adapters", *totals(facts))
    for title, (head, rows) in share_tables(facts).items():
        show_table(f"Share of ‖ΔW‖² by {title} (share of the parameters)", head, rows)
    for one, outcome in zip(facts, results, strict=True):
        if every:
            show_table(one.label, LAYER_HEAD, layer_rows(one))
        rows = lowered_rows(one, smaller(one, outcome))
        title = f"{one.label}: smaller factors, the error of the nearest product in ‖ΔW‖"
        if rows:
            show_table(title, LOWERED_HEAD, rows)
        else:
            print(f"{title}: no tested pair has fewer parameters.\n")


def as_json(
    facts: Sequence[Facts],
    results: Sequence[Sequence[Any]],
    drawn: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> dict[str, Any]:
    """Every number of every layer, and of what was drawn with each adapter."""

    def layer(x: Any) -> dict[str, Any]:
        names = "component name shape factors parameters norm base_norm"
        values = {name: getattr(x, name) for name in names.split()} | asdict(x.place)
        for name in ("singular", "singular_a", "singular_b"):
            spectrum = getattr(x, name)
            values[name] = None if spectrum is None else spectrum.tolist()
            rank = None if spectrum is None else effective_rank(spectrum)
            values[f"effective_rank_{name}"] = rank
        return values

    numbers = {
        one.label: {
            "method": one.method,
            "parameters": one.parameters,
            "norm": one.norm,
            "shares": {a: shares(one.layers, a) for a in KINDS},
            "layers": [layer(x) for x in one.layers],
            "lowered": [asdict(r) for r in outcome],
        }
        for one, outcome in zip(facts, results, strict=True)
    }
    for one, parts in zip(facts, drawn, strict=False):
        numbers[one.label]["drawn"] = {k: v for part in parts for k, v in part.items()}
    return numbers
