"""What the rows of A do: a Kronecker product's delta W has one block of rows for each row of A.

Row i of A (a1, a2) multiplies B in rows i·out/a1 to (i + 1)·out/a1 of delta W and nowhere else,
with `output_order="kron"`; with "interleaved" in every a1-th row, from the i-th. In the projections
of queries, keys and values such a block is one of heads, where a1 divides their number.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..adapters.groups import layers_with
from ..adapters.krona_method import KRONA
from .facts import Facts, LayerFacts

MOST = 8  # bands of rows that are drawn


def band_count(facts: Facts) -> int:
    """Into how many bands of consecutive rows the A of every layer is divided: single rows where
    there are at most eight; 0 for another method, or where a layer has one row only."""
    if facts.method != KRONA.name:
        return 0
    count = min(MOST, *(layer.factors[0] for layer in facts.layers if layer.factors))
    return count if count > 1 else 0


def band_shares(facts: Facts, count: int) -> list[float]:
    """Each band's share of the summed ||delta W||^2."""
    sums = torch.zeros(count, dtype=torch.float64)
    for layer in facts.layers if count else ():
        energies = _row_energies(layer)
        for band in range(count):
            sums[band] += energies[_rows(band, count, len(energies))].sum()
    return (sums / sums.sum().clamp_min(1e-300)).tolist()


def _row_energies(layer: LayerFacts) -> torch.Tensor:
    """||the rows of delta W that row i of A makes||^2, (a1,)."""
    a, b = layer.a.double(), layer.b.double()
    rows = torch.einsum("tij,sij->its", a, a)
    return (rows * torch.einsum("tkl,skl->ts", b, b)).sum((1, 2)) * layer.scale**2


def _rows(band: int, count: int, rows: int) -> slice:
    return slice(band * rows // count, (band + 1) * rows // count)


@contextmanager
def weighted_rows(pipeline: Any, adapter_name: str, weights: Sequence[float]) -> Generator[None]:
    """Multiply the rows of A in every layer by the weights of their bands, for a while.

    Args:
        pipeline: carries a KronA adapter of that name, live.
        weights: one per band.
    """
    layers = [layer for _, _, layer in layers_with(pipeline, adapter_name)]
    factors = [layer.krona_a[adapter_name] for layer in layers]
    trained = [a.data for a in factors]
    try:
        for a in factors:
            a.data = a.data.clone()
            for band, weight in enumerate(weights):
                a.data[..., _rows(band, len(weights), a.shape[-2]), :] *= weight
        yield
    finally:
        for a, data in zip(factors, trained, strict=True):
            a.data = data
