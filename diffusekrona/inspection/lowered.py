"""To what (a1, a2) an adapter could be lowered, and at what error: its nearest such product.

Rearranged so that each block becomes a row, a Kronecker product is an outer product, so the nearest
one is the best rank 1 of that matrix R, and misses ||R||^2 - sigma_1^2 (Van Loan and Pitsianis,
"Approximation with Kronecker products", 1993).

Where each side of the wanted pair divides, or is a multiple of, that of the pair the layer has, R
is itself a Kronecker product: of A with the rows and columns split off that leave it, and of B with
those split off that A takes over. Its largest singular value is then the product of theirs, and
nothing of the layer's size is formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..adapters.deltas import rearrange
from ..krona.factors import Pair, divides
from ..krona.functional import kron_weight
from .facts import Facts, LayerFacts


def missed(layer: LayerFacts, pair: Pair) -> float | None:
    """||delta W - nearest product||^2 / ||delta W||^2 with A of size `pair`, rows in its own order.

    None where `pair` does not divide the layer.
    """
    if not divides(*pair, *layer.shape):
        return None
    if layer.norm == 0:
        return 0.0
    order = layer.output_order
    if layer.factors and len(layer.a) == 1 and _nest(layer.factors, pair):
        a, b = layer.a[0], layer.b[0]
        stay = math.gcd(layer.factors[0], pair[0]), math.gcd(layer.factors[1], pair[1])
        move = pair[0] // stay[0], pair[1] // stay[1]
        kept = _top_square(rearrange(a, *stay, order)) * _top_square(rearrange(b, *move, order))
        whole = a.double().square().sum() * b.double().square().sum()
        return max(0.0, 1.0 - kept / whole.item())
    if layer.factors is None:
        gram = low_rank_gram(layer.a, layer.b, pair)
        return max(0.0, 1.0 - (torch.linalg.eigvalsh(gram)[-1] / gram.trace()).item())
    weight = kron_weight(layer.a, layer.b, order)
    whole = weight.double().square().sum().item()
    return max(0.0, 1.0 - _top_square(rearrange(weight, *pair, order)) / whole)


def low_rank_gram(up: torch.Tensor, down: torch.Tensor, pair: Pair) -> torch.Tensor:
    """R R^T, or R^T R where that is smaller, of up (out, r) @ down (r, in), without delta W.

    R is the sum over r of (column of up as a1 × b1) (x) (row of down as a2 × b2), so its Gram
    matrix is a sum of r^2 Kronecker products of small ones.
    """
    rank, (a1, a2) = down.shape[0], pair
    left = up.double().t().reshape(rank, a1, -1)
    right = down.double().reshape(rank, a2, -1)
    if a1 * a2 > left.shape[2] * right.shape[2]:
        left, right = left.transpose(1, 2), right.transpose(1, 2)
    lefts = torch.einsum("rib,sjb->rsij", left, left)
    rights = torch.einsum("rkb,slb->rskl", right, right)
    size = left.shape[1] * right.shape[1]
    return torch.einsum("rsij,rskl->ikjl", lefts, rights).reshape(size, size)


def _nest(have: Pair, want: Pair) -> bool:
    return all(h % w == 0 or w % h == 0 for h, w in zip(have, want, strict=True))


def _top_square(matrix: torch.Tensor) -> float:
    """The largest squared singular value."""
    matrix = matrix.double()
    if min(matrix.shape) == 1:
        return matrix.square().sum().item()
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    return torch.linalg.eigvalsh(gram)[-1].item()


@dataclass(frozen=True)
class Lowered:
    """All layers with A of another size.

    Attributes:
        parameters: of all layers, with a single product in each.
        error: ||error|| / ||delta W||, both over all layers; worst: of the worst layer.
    """

    pair: Pair
    parameters: int
    error: float
    worst: float


def lowered(facts: Facts) -> list[Lowered]:
    """The nearest single products with other factors, fewest parameters first.

    Factors that do not divide every layer are left out.
    """
    results = []
    for pair in candidates(facts):
        found = [missed(layer, pair) for layer in facts.layers]
        errors = [error for error in found if error is not None]
        if len(errors) < len(found):
            continue
        energies = [layer.norm**2 for layer in facts.layers]
        total = sum(e * n for e, n in zip(errors, energies, strict=True))
        a = pair[0] * pair[1]
        count = sum(a + layer.shape[0] * layer.shape[1] // a for layer in facts.layers)
        error = math.sqrt(total / sum(energies)) if sum(energies) > 0 else 0.0
        results.append(Lowered(pair, count, error, math.sqrt(max(errors))))
    return sorted(results, key=lambda r: (r.parameters, r.error))


def smaller(facts: Facts, results: Sequence[Lowered]) -> list[Lowered]:
    """Those with fewer parameters than now that no other one beats in both parameters and error."""
    kept = []
    for result in sorted(results, key=lambda r: (r.parameters, r.error)):
        beaten = kept and kept[-1].error <= result.error
        if result.parameters < facts.parameters and not beaten:
            kept.append(result)
    return kept


def candidates(facts: Facts) -> list[Pair]:
    """For KronA pairs nested with the one it has, whose error costs next to nothing; for another
    method the usual ones, whose error needs its delta W."""
    pairs = {layer.factors for layer in facts.layers if layer.factors}
    if not all(layer.factors for layer in facts.layers):
        return [(4, 16), (16, 16), (2, 64), (4, 64), (8, 64)]
    firsts = {n for a1, _ in pairs for n in _relatives(a1)}
    seconds = {n for _, a2 in pairs for n in _relatives(a2)}
    return sorted((a1, a2) for a1 in firsts for a2 in seconds)


def _relatives(n: int) -> set[int]:
    """n's divisors, and n doubled up to 64."""
    doubled = {n * 2**k for k in range(7) if n * 2**k <= 64}
    return {d for d in range(1, n + 1) if n % d == 0} | doubled
