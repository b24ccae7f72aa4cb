"""What a file does to one layer: delta W (out, in), kept in the factors that the file holds.

Three kinds, for reading any of the formats and writing any other:

    KronDelta      scale * sum_i kron(A_i, B_i), rows perhaps interleaved
    LowRankDelta   up (out, r) @ down (r, in)
    DenseDelta     the matrix itself

A convolution's weight (out, in, kh, kw) counts as the matrix (out, in*kh*kw), which is how other
programs read a Kronecker product of it; `kernel` keeps (kh, kw).

rank(kron(A, B)) = rank(A) * rank(B), and with A = Ua Va, B = Ub Vb the mixed-product property
gives kron(A, B) = kron(Ua, Ub) kron(Va, Vb), so a Kronecker product is a LoRA of that rank,
exactly, and its SVD is that of its small factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..krona.functional import add_kron_, kron_weight

RANK_TOLERANCE = 1e-6  # singular values below this share of the largest are fp32 rounding


@dataclass(frozen=True)
class KronDelta:
    """scale * sum_i kron(a_i, b_i): a (terms, a1, a2), b (terms, b1, b2), fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    output_order: str = "kron"
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.a.shape[1] * self.b.shape[1], self.a.shape[2] * self.b.shape[2])

    @property
    def terms(self) -> int:
        return self.a.shape[0]

    def weight(self) -> torch.Tensor:
        """The matrix (out, in), fp32."""
        return kron_weight(self.a * self.scale, self.b, self.output_order)

    def add_to(self, weight: torch.Tensor) -> None:
        """weight (out, in) fp32 += this, in place, with no matrix beside it."""
        add_kron_(weight, self.a, self.b, self.scale, self.output_order)

    def parameters(self) -> int:
        return self.a.numel() + self.b.numel()


@dataclass(frozen=True)
class LowRankDelta:
    """up (out, r) @ down (r, in), fp32."""

    up: torch.Tensor
    down: torch.Tensor
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.up.shape[0], self.down.shape[1])

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def weight(self) -> torch.Tensor:
        return self.up @ self.down

    def add_to(self, weight: torch.Tensor) -> None:
        weight.addmm_(self.up, self.down)

    def parameters(self) -> int:
        return self.up.numel() + self.down.numel()


@dataclass(frozen=True)
class DenseDelta:
    """The matrix (out, in), fp32, computed at every call: a model has hundreds."""

    make: Callable[[], torch.Tensor]
    shape: tuple[int, int]
    kernel: tuple[int, ...] = ()

    def weight(self) -> torch.Tensor:
        return self.make()

    def add_to(self, weight: torch.Tensor) -> None:
        weight.add_(self.make())

    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


Delta = KronDelta | LowRankDelta | DenseDelta


def rearrange(weight: torch.Tensor, a1: int, a2: int, order: str = "kron") -> torch.Tensor:
    """W (a1*b1, a2*b2), rows in `order`, to R (a1*a2, b1*b2)."""
    b1, b2 = weight.shape[0] // a1, weight.shape[1] // a2
    if order == "interleaved":
        blocks = weight.reshape(b1, a1, a2, b2).permute(1, 2, 0, 3)
    else:
        blocks = weight.reshape(a1, b1, a2, b2).transpose(1, 2)
    return blocks.reshape(a1 * a2, b1 * b2)


def krons_equally(delta: Delta) -> bool:
    """Whether delta is one Kronecker product in torch.kron's order."""
    return isinstance(delta, KronDelta) and delta.terms == 1 and delta.output_order == "kron"


def as_plain_kron(delta: KronDelta) -> KronDelta:
    """Interleaved rows put into torch.kron's order where that is possible.

    dW[i_b*a1 + i_a, j_a*b2 + j_b] = A[i_a, j_a] B[i_b, j_b] is kron(B, A) when one of the column
    counts a2, b2 is 1, and kron(A, B) when one of the row counts is; else it is not a Kronecker
    product and is given back as it came.
    """
    if delta.output_order == "kron":
        return delta
    (_, a1, a2), (_, b1, b2) = delta.a.shape, delta.b.shape
    if a1 == 1 or b1 == 1:
        return replace(delta, output_order="kron")
    if a2 == 1 or b2 == 1:
        return replace(delta, a=delta.b, b=delta.a, output_order="kron")
    return delta


def to_low_rank(delta: Delta) -> LowRankDelta:
    """The same matrix as a LoRA of the least rank that its factors show; exact.

    A factor of full rank is split as identity times itself, so that its numbers are kept bit for
    bit; only a factor that lacks rank goes through an SVD.
    """
    if isinstance(delta, LowRankDelta):
        return delta
    if isinstance(delta, DenseDelta):
        rows, columns = delta.shape
        return truncate(delta, min(rows, columns))
    ups, downs = [], []
    for a, b in zip(delta.a, delta.b, strict=True):
        (left_a, right_a), (left_b, right_b) = _split(a), _split(b)
        ups.append(kron_weight(left_a, left_b, delta.output_order))
        downs.append(torch.kron(right_a, right_b) * delta.scale)
    total = LowRankDelta(torch.cat(ups, dim=1), torch.cat(downs), delta.kernel)
    return total if total.rank <= min(total.shape) else truncate(total, min(total.shape))


def truncate(delta: Delta, rank: int) -> LowRankDelta:
    """The nearest matrix of at most `rank` (Eckart and Young), as a LoRA with balanced factors.

    The SVD is made of the factors: for one Kronecker product the SVDs of A and B give that of the
    product; else a QR of up and of down leaves a core of (r, r).
    """
    if isinstance(delta, KronDelta) and delta.terms == 1:
        return _truncate_product(delta, rank)
    if isinstance(delta, DenseDelta):
        u, s, vh = torch.linalg.svd(delta.weight().double(), full_matrices=False)
    else:
        low = delta if isinstance(delta, LowRankDelta) else _stacked(delta)
        q_up, r_up = torch.linalg.qr(low.up.double())
        q_down, r_down = torch.linalg.qr(low.down.double().t())
        u, s, vh = torch.linalg.svd(r_up @ r_down.t(), full_matrices=False)
        u, vh = q_up @ u, vh @ q_down.t()
    kept = max(1, min(rank, int((s > s[0] * RANK_TOLERANCE).sum())))
    root = s[:kept].sqrt()
    return LowRankDelta(
        (u[:, :kept] * root).float(), (root[:, None] * vh[:kept]).float(), delta.kernel
    )


def combine(parts: Sequence[tuple[float, Delta]]) -> Delta:
    """sum_i weight_i * delta_i, in the leanest kind that holds it exactly.

    Kronecker products of the same factor shapes become the terms of one; others become one LoRA.

    Raises:
        ValueError: deltas of different shapes.
    """
    shapes = {delta.shape for _, delta in parts}
    if len(shapes) != 1:
        raise ValueError(f"shapes differ: {', '.join(map(str, sorted(shapes)))}")
    if len(parts) == 1 and isinstance(parts[0][1], KronDelta):
        return replace(parts[0][1], scale=parts[0][1].scale * parts[0][0])
    kernel = parts[0][1].kernel
    krons = [(weight, d) for weight, d in parts if isinstance(d, KronDelta)]
    kinds = {(d.a.shape[1:], d.b.shape[1:], d.output_order) for _, d in krons}
    if len(krons) == len(parts) and len(kinds) == 1:
        a = torch.cat([d.a * (d.scale * weight) for weight, d in krons])
        b = torch.cat([d.b for _, d in krons])
        return KronDelta(a, b, 1.0, krons[0][1].output_order, kernel)
    if any(isinstance(d, DenseDelta) for _, d in parts):
        return DenseDelta(lambda: _weighted_sum(parts), parts[0][1].shape, kernel)
    lows = [(weight, to_low_rank(d)) for weight, d in parts]
    total = LowRankDelta(
        torch.cat([low.up * weight for weight, low in lows], dim=1),
        torch.cat([low.down for _, low in lows]),
        kernel,
    )
    return total if total.rank <= min(total.shape) else truncate(total, min(total.shape))


def _weighted_sum(parts: Sequence[tuple[float, Delta]]) -> torch.Tensor:
    total = torch.zeros(parts[0][1].shape)
    for weight, delta in parts:
        total += weight * delta.weight()
    return total


def pad_terms(delta: KronDelta, terms: int) -> KronDelta:
    """The same delta with zero products added, up to `terms`."""
    missing = terms - delta.terms
    if missing <= 0:
        return delta
    return replace(
        delta,
        a=torch.cat([delta.a, delta.a.new_zeros(missing, *delta.a.shape[1:])]),
        b=torch.cat([delta.b, delta.b.new_zeros(missing, *delta.b.shape[1:])]),
    )


def difference(one: Delta, other: Delta) -> tuple[float, float]:
    """(largest absolute, Frobenius relative to `one`) difference of two deltas' matrices."""
    want, have = one.weight(), other.weight()
    gap = have - want
    norm = want.double().norm().item()
    return gap.abs().max().item(), gap.double().norm().item() / norm if norm else 0.0


def total_parameters(deltas: Iterable[Delta]) -> int:
    return sum(delta.parameters() for delta in deltas)


def _split(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """factor = left @ right with the least inner dimension."""
    rows, columns = factor.shape
    u, s, vh = torch.linalg.svd(factor.double(), full_matrices=False)
    rank = max(1, int((s > s[0] * RANK_TOLERANCE).sum()))
    if rank < min(rows, columns):
        return _fresh(u[:, :rank] * s[:rank]), _fresh(vh[:rank])
    if rows <= columns:
        return torch.eye(rows), factor
    return factor, torch.eye(columns)


def _fresh(matrix: torch.Tensor) -> torch.Tensor:
    """fp32 with plain strides; `contiguous` keeps a one-column view's, which torch.kron refuses."""
    return matrix.float().clone(memory_format=torch.contiguous_format)


def _stacked(delta: KronDelta) -> LowRankDelta:
    parts = [
        to_low_rank(replace(delta, a=a[None], b=b[None]))
        for a, b in zip(delta.a, delta.b, strict=True)
    ]
    return LowRankDelta(torch.cat([p.up for p in parts], 1), torch.cat([p.down for p in parts]))


def _truncate_product(delta: KronDelta, rank: int) -> LowRankDelta:
    ua, sa, va = torch.linalg.svd(delta.a[0].double() * delta.scale, full_matrices=False)
    ub, sb, vb = torch.linalg.svd(delta.b[0].double(), full_matrices=False)
    products = (sa[:, None] * sb[None, :]).flatten()
    order = products.argsort(descending=True, stable=True)
    limit = max(1, int((products > products.max() * RANK_TOLERANCE).sum()))
    order = order[: min(rank, limit)]
    i, j = order // len(sb), order % len(sb)
    # Columns of kron(ua, ub) at (i, j); interleaving only reorders the rows.
    view = "abr->bar" if delta.output_order == "interleaved" else "abr->abr"
    blocks = torch.einsum("ar,br->abr", ua[:, i], ub[:, j])
    up = torch.einsum(view, blocks).reshape(-1, len(order))
    down = torch.einsum("ra,rb->rab", va[i], vb[j]).reshape(len(order), -1)
    root = products[order].sqrt()
    return LowRankDelta((up * root).float(), (root[:, None] * down).float(), delta.kernel)
