"""The maths of the Kronecker adapter, without modules or state.

Shapes, for a layer W of (out, in) with out = a1*b1 and in = a2*b2, and r terms:

    A  (r, a1, a2)        delta W = sum_i A_i (x) B_i            (out, in)
    B  (r, b1, b2)        (A (x) B)[i_a*b1 + i_b, j_a*b2 + j_b] = A[i_a, j_a] * B[i_b, j_b]

A vector x of length in is read as a matrix X (a2, b2); then (A (x) B) x is A X B^T (a1, b1), read
as a vector of length out. So a forward pass never forms the product. A 2-D factor is one term.

`output_order` says how the rows of delta W are counted: "kron" is torch.kron's order
(i_a*b1 + i_b); "interleaved" is that of the published DiffuseKronA code (i_b*a1 + i_a), which
shuffles the rows of the same product.

Source: DiffuseKronA, arXiv 2402.17412, section 3.
"""

from __future__ import annotations

import torch

from .factors import cheaper_order

OUTPUT_ORDERS = ("kron", "interleaved")


def kron_linear(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    order: str | None = None,
    output_order: str = "kron",
) -> torch.Tensor:
    """Apply delta W = sum_i kron(a_i, b_i) to the last dimension of x, without forming it.

    Args:
        x: (..., a2*b2).
        a: (a1, a2) or (r, a1, a2).
        b: (b1, b2) or (r, b1, b2).
        order: "a_first" or "b_first"; by default the one with fewer multiplications.
        output_order: row order of delta W, see this module's head.

    Returns:
        (..., a1*b1), of the dtype that x, a and b promote to (or autocast's).
    """
    a, b = _as_terms(a), _as_terms(b)
    r, a1, a2 = a.shape
    _, b1, b2 = b.shape
    matrices = x.reshape(-1, a2, b2)
    if (order or cheaper_order(a1, a2, b1, b2)) == "a_first":
        # All terms' A at once: (r*a1, a2) @ (n, a2, b2); then sum over (r, b2) with the Bs.
        first = torch.matmul(a.reshape(r * a1, a2), matrices)  # (n, r*a1, b2)
        if r > 1:
            first = first.view(-1, r, a1, b2).transpose(1, 2).reshape(-1, a1, r * b2)
        y = torch.matmul(first, b.transpose(0, 1).reshape(b1, r * b2).t())  # (n, a1, b1)
    else:
        first = torch.matmul(matrices, b.reshape(r * b1, b2).t())  # (n, a2, r*b1)
        if r > 1:
            first = first.view(-1, a2, r, b1).transpose(1, 2).reshape(-1, r * a2, b1)
        y = torch.matmul(a.transpose(0, 1).reshape(a1, r * a2), first)  # (n, a1, b1)
    if output_order == "interleaved":
        y = y.transpose(1, 2)
    return y.reshape(*x.shape[:-1], a1 * b1)


def kron_weight(a: torch.Tensor, b: torch.Tensor, output_order: str = "kron") -> torch.Tensor:
    """delta W (a1*b1, a2*b2) itself, for tests, conversion and inspection; equal to torch.kron.

    Args:
        a: (a1, a2) or (r, a1, a2).
        b: (b1, b2) or (r, b1, b2).
    """
    a, b = _as_terms(a), _as_terms(b)
    # By broadcasting: torch.kron fails on some transposed one-row factors.
    blocks = a[0][:, None, :, None] * b[0][None, :, None, :]
    for a_i, b_i in zip(a[1:], b[1:], strict=True):
        blocks = blocks + a_i[:, None, :, None] * b_i[None, :, None, :]
    weight = blocks.reshape(a.shape[1] * b.shape[1], a.shape[2] * b.shape[2])
    if output_order == "interleaved":
        weight = weight.view(a.shape[1], b.shape[1], -1).transpose(0, 1).reshape(weight.shape)
    return weight


@torch.no_grad()
def add_kron_(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    output_order: str = "kron",
) -> torch.Tensor:
    """weight += scale * sum_i kron(a_i, b_i), in place, with no delta W beside it.

    The sum is made in fp32 and rounded once, so a half-precision base loses nothing twice.

    Args:
        weight: (a1*b1, a2*b2), of any floating dtype; changed in place.
    """
    a, b = _as_terms(a).float(), _as_terms(b).float()
    (_, a1, a2), (_, b1, b2) = a.shape, b.shape
    total = weight.float()  # weight itself where it is fp32 already
    if output_order == "interleaved":
        view, a_shape, b_shape = (b1, a1, a2, b2), (1, a1, a2, 1), (b1, 1, 1, b2)
    else:
        view, a_shape, b_shape = (a1, b1, a2, b2), (a1, 1, a2, 1), (1, b1, 1, b2)
    blocks = total.view(view)
    for a_i, b_i in zip(a, b, strict=True):
        blocks.addcmul_(a_i.view(a_shape), b_i.view(b_shape), value=scale)
    if total is not weight:
        weight.copy_(total)
    return weight


def _as_terms(factor: torch.Tensor) -> torch.Tensor:
    return factor if factor.dim() == 3 else factor.unsqueeze(0)
