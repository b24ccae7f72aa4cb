"""A frozen linear layer with one Kronecker adapter, computed together: W x + b + (A (x) B) x.

The plain form (`functional.kron_linear`, added to the layer's output) is right but reads and writes
the activations more often than LoRA does, and time goes into that, not into multiplications. Here

- the second product accumulates into the base's output, and into its gradient, in place;
- backward keeps x, which LoRA's backward keeps too, and the factors as they were cast; it makes the
  product of x with the first factor again, which is cheap, and may be as large as x itself;
- x, read as X (a2, b2), is not transposed or copied, with few exceptions.

             A first                         B first
forward      Z = A X (a1, b2), Y += Z B^T    T = X B^T (a2, b1), Y += A T
backward     U = dY B (a1, b2)               V = A^T dY (a2, b1)
             dX += A^T U                     dX += V B
             dA = sum U X^T                  dA = sum dY T^T
             dB = sum dY^T Z                 dB = sum V^T X

with sums over tokens. `benchmarks/adapter_step.py` measures it; the tests hold it to the plain
form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .factors import cheaper_order

# How products from the left are made, see `_way`: numbers in a row, and multiplications a token.
NARROW_HALF, NARROW = 16, 12
DENSE_HALF, DENSE_SINGLE = 2**16, 2**13
LARGE_HALF, LARGE_SINGLE = 16, 8


def fused_kron_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
) -> torch.Tensor:
    """F.linear(x, weight, bias) + scale * kron_linear(x, a, b), with gradients to x, a and b alone.

    Args:
        x: (..., a2*b2).
        weight, bias: (a1*b1, a2*b2) and (a1*b1,), frozen, of x's dtype.
        a, b: (a1, a2) and (b1, b2), one term, of any floating dtype; x's is computed in.

    Returns:
        (..., a1*b1), of x's dtype.
    """
    return _FusedKronLinear.apply(x, weight, bias, a, b, scale)


class _FusedKronLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.scale, factors = scale, (a, b)
        a, b = (a * scale if scale != 1.0 else a).to(x.dtype), b.to(x.dtype)
        ctx.save_for_backward(x, weight, a, b, *factors)
        (a1, a2), (b1, b2) = a.shape, b.shape
        y = F.linear(x, weight, bias)
        if cheaper_order(a1, a2, b1, b2) == "a_first":
            X = x.reshape(-1, a2, b2)
            way = _way(a1, a2, X)
            Z = _left(way, _matrix(way, a, b2), X)
            y.view(-1, b1).addmm_(Z.reshape(-1, b2), b.t())
        else:
            T = torch.mm(x.reshape(-1, b2), b.t()).view(-1, a2, b1)
            way = _way(a1, a2, T)
            _add_left_(way, y.view(-1, a1, b1), _matrix(way, a, b1), T)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = grad_outputs
        x, weight, a, b, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: these gradients are differentiated again
            return _plain_gradients(ctx, dy, x, weight, *factors)
        (a1, a2), (b1, b2) = a.shape, b.shape
        dy = dy.to(x.dtype).contiguous()  # attention hands back transposed heads
        X, Y = x.reshape(-1, a2, b2), dy.reshape(-1, a1, b1)
        dx = torch.matmul(dy, weight) if ctx.needs_input_grad[0] else None
        if cheaper_order(a1, a2, b1, b2) == "a_first":
            way = _way(a1, a2, X)
            matrix = _matrix(way, a, b2)
            U = _few_columns(Y.view(-1, b1), b).view(-1, a1, b2)
            if dx is not None:
                _add_left_(way, dx.view(-1, a2, b2), matrix.t(), U)
            da = _contract(way, U, X)
            db = _sum_of_products(Y.view(-1, b1), _left(way, matrix, X).reshape(-1, b2))
        else:
            way = _way(a1, a2, Y)
            V = _left(way, _matrix(way, a, b1).t(), Y)
            if dx is not None:
                dx.view(-1, b2).addmm_(V.reshape(-1, b1), b)
            db = _sum_of_products(V.reshape(-1, b1), X.reshape(-1, b2))
            T = torch.mm(X.reshape(-1, b2), b.t()).view(-1, a2, b1)
            da = _contract(way, Y, T)
        # Laid out as the factors are, or autograd would copy the gradient a second time.
        layout = torch.contiguous_format
        da = da.to(factors[0].dtype, memory_format=layout)
        db = db.to(factors[1].dtype, memory_format=layout)
        return dx, None, None, da * ctx.scale if ctx.scale != 1.0 else da, db, None


def _plain_gradients(
    ctx: Any,
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """The same gradients by operations that autograd follows."""
    A, B = (a * ctx.scale).to(x.dtype), b.to(x.dtype)
    dy = dy.to(x.dtype)
    X, Y = x.reshape(-1, a.shape[1], b.shape[1]), dy.reshape(-1, a.shape[0], b.shape[0])
    AY = torch.matmul(A.t(), Y)  # (tokens, a2, b1)
    dx = None
    if ctx.needs_input_grad[0]:
        dx = torch.matmul(dy, weight) + torch.matmul(AY, B).reshape(x.shape)
    da = torch.einsum("nij,jl,nkl->ik", Y, B, X).to(a.dtype) * ctx.scale
    db = torch.einsum("nkj,nkl->jl", AY, X).to(b.dtype)
    return dx, None, None, da, db, None


def _few_columns(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x @ matrix; in single precision up to three times faster with the columns stored as rows."""
    half = x.dtype.itemsize == 2
    return torch.mm(x, matrix) if half else F.linear(x, matrix.t().contiguous())


def _sum_of_products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x^T y, sums over rows; up to five times faster with the narrower one from the left."""
    return torch.mm(y.t(), x).t() if y.shape[1] < x.shape[1] else torch.mm(x.t(), y)


# Products from the left, one matrix for all tokens, (m, k) with (tokens, k, w), made in one of
# three ways. Where the way is "dense", the matrix handed about is matrix (x) I_w, (m*w, k*w).


def _way(m: int, k: int, x: torch.Tensor) -> str:
    """How to multiply x (tokens, k, w) by a matrix (m, k) from the left, by what was fastest.

    "batched" is a product per token, slow where its rows are short. "dense" is one product with
    matrix (x) I_w, which multiplies by zeros and yet wins while that costs little; "turned" lays x
    on its side, so that one product serves all tokens, for a matrix too large for that.
    """
    w, half = x.shape[-1], x.dtype.itemsize == 2
    cost = m * k * w * w
    if half and w <= NARROW_HALF and (x.is_cuda or cost <= DENSE_HALF):
        return "dense"  # zeros cost tensor cores next to nothing
    if not half and cost <= DENSE_SINGLE:
        return "dense"
    large = min(m, k) >= (LARGE_HALF if half else LARGE_SINGLE)
    return "turned" if large and w <= NARROW else "batched"


def _matrix(way: str, matrix: torch.Tensor, w: int) -> torch.Tensor:
    """The matrix (m, k) as `way` wants it; it may be transposed then."""
    if way != "dense":
        return matrix
    m, k = matrix.shape
    dense = matrix.new_zeros(m, w, k, w)
    dense.diagonal(dim1=1, dim2=3).copy_(matrix.unsqueeze(-1).expand(m, k, w))
    return dense.view(m * w, k * w)


def _turned(x: torch.Tensor) -> torch.Tensor:
    """x (tokens, k, w) as (tokens*w, k)."""
    n, k, w = x.shape
    return x.transpose(1, 2).reshape(n * w, k)


def _batched(matrix: torch.Tensor, tokens: int) -> torch.Tensor:
    """The matrix once per token, without copies. Its rows must be contiguous, or a product in half
    precision copies it for every token."""
    return matrix.contiguous().expand(tokens, *matrix.shape)


def _left(way: str, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """matrix @ x, (tokens, m, w)."""
    n, k, w = x.shape
    match way:
        case "dense":
            return _few_columns(x.reshape(n, k * w), matrix.t()).view(n, len(matrix) // w, w)
        case "turned":
            turned = _few_columns(_turned(x), matrix.t()).view(n, w, len(matrix))
            return turned.transpose(1, 2).contiguous()
        case _:
            return torch.bmm(_batched(matrix, n), x)


def _add_left_(way: str, total: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor) -> None:
    """total (tokens, m, w) += matrix @ x."""
    n, k, w = x.shape
    if way == "dense":
        total.view(n, len(matrix)).addmm_(x.reshape(n, k * w), matrix.t())
    elif w <= NARROW_HALF:  # sums of short rows are slow within a batched product
        total.add_(_left(way, matrix, x))
    else:
        total.baddbmm_(_batched(matrix, n), x)


def _contract(way: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """sum over tokens and the last dimension: (tokens, m, w), (tokens, k, w) -> (m, k)."""
    (n, m, w), k = x.shape, y.shape[1]
    match way:
        case "dense":
            dense = _sum_of_products(x.reshape(n, m * w), y.reshape(n, k * w))
            return dense.reshape(m, w, k, w).diagonal(dim1=1, dim2=3).sum(-1)
        case "turned":
            return _sum_of_products(_turned(x), _turned(y))
        case _:
            pass
    if m * k <= 2 * (m + k) * w:  # the matrices, one per token, are not much larger than x and y
        return torch.bmm(x, y.transpose(1, 2)).sum(0)
    return torch.mm(x.transpose(0, 1).reshape(m, n * w), y.transpose(0, 1).reshape(k, n * w).t())
