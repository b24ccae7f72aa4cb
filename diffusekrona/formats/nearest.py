"""The sum of Kronecker products nearest to a given matrix.

Rearranged so that each block becomes a row, a Kronecker product becomes an outer product:
R[(i, j), (k, l)] = W[i*b1 + k, j*b2 + l], and W = kron(A, B) exactly when R = vec(A) vec(B)^T. So
the best r products are the best rank r of R, from its SVD.

Source: Van Loan and Pitsianis, "Approximation with Kronecker products", 1993.
"""

from __future__ import annotations

import torch

from ..adapters.deltas import Delta, KronDelta, rearrange


def nearest_kron(
    delta: Delta, a1: int, a2: int, terms: int = 1, order: str = "kron"
) -> tuple[KronDelta, float]:
    """The nearest sum of `terms` products with A (a1, a2), rows in `order`, and what it misses.

    Works in fp64 on R's smaller Gram matrix, at most (sqrt(out*in))^2, so that a layer of SDXL
    takes tenths of a second. The two factors of a product get equal norms.

    Returns:
        The products, and ||W - sum|| / ||W|| in the Frobenius norm (0 for W = 0).
    """
    matrix = rearrange(delta.weight().double(), a1, a2, order)
    rows, columns = matrix.shape
    b1, b2 = delta.shape[0] // a1, delta.shape[1] // a2
    count = min(terms, rows, columns)
    if rows <= columns:
        left = _leading(matrix @ matrix.t(), count)  # (rows, count), orthonormal
        right = matrix.t() @ left  # (columns, count), carries the singular values
    else:
        right = _leading(matrix.t() @ matrix, count)
        left = matrix @ right
    norm = matrix.norm()
    error = ((matrix - left @ right.t()).norm() / norm).item() if norm > 0 else 0.0
    balance = (right.norm(dim=0) / left.norm(dim=0)).sqrt()
    # A zero product keeps one unit factor, so that it can still be trained on.
    balance = torch.where(balance.isfinite() & (balance > 0), balance, torch.ones_like(balance))
    a = (left * balance).t().reshape(count, a1, a2).float()
    b = (right / balance).t().reshape(count, b1, b2).float()
    return KronDelta(a.contiguous(), b.contiguous(), 1.0, order, delta.kernel), error


def _leading(gram: torch.Tensor, count: int) -> torch.Tensor:
    _, vectors = torch.linalg.eigh(gram)
    return vectors[:, -count:].flip(1)
