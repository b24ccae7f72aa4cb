"""The maths against torch.kron."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusekrona.krona.functional import (
    add_kron_,
    kron_linear,
    kron_weight,
)

small = st.integers(1, 6)
shapes = st.tuples(small, small, small, small)


def factors(a1: int, a2: int, b1: int, b2: int, terms: int, dtype=torch.float64):
    g = torch.Generator().manual_seed(a1 + 7 * a2 + 49 * b1 + 343 * b2)
    a = torch.randn(terms, a1, a2, generator=g, dtype=torch.float64).to(dtype)
    b = torch.randn(terms, b1, b2, generator=g, dtype=torch.float64).to(dtype)
    return (a[0], b[0]) if terms == 1 else (a, b)


def published_weight(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """delta W of the published code, element by element from its definition."""
    (a1, a2), (b1, b2) = a.shape, b.shape
    weight = torch.empty(a1 * b1, a2 * b2, dtype=a.dtype)
    for ia in range(a1):
        for ja in range(a2):
            for ib in range(b1):
                for jb in range(b2):
                    weight[ib * a1 + ia, ja * b2 + jb] = a[ia, ja] * b[ib, jb]
    return weight


@settings(max_examples=60)
@given(shapes, st.integers(1, 3), st.sampled_from(["a_first", "b_first", None]), st.integers(0, 3))
def test_equals_torch_kron_in_any_order(shape, terms, order, leading) -> None:
    a, b = factors(*shape, terms)
    x = torch.randn(*([2] * leading), shape[1] * shape[3], dtype=torch.float64)
    A, B = (a, b) if terms > 1 else (a[None], b[None])
    weight = sum(torch.kron(p, q) for p, q in zip(A, B, strict=True))
    torch.testing.assert_close(kron_linear(x, a, b, order), x @ weight.T)
    torch.testing.assert_close(kron_weight(a, b), weight)


@settings(max_examples=30)
@given(shapes, st.sampled_from(["a_first", "b_first"]))
def test_interleaved_order_is_the_published_codes(shape, order) -> None:
    a, b = factors(*shape, 1)
    weight = published_weight(a, b)
    x = torch.randn(3, shape[1] * shape[3], dtype=torch.float64)
    torch.testing.assert_close(kron_weight(a, b, "interleaved"), weight)
    torch.testing.assert_close(kron_linear(x, a, b, order, "interleaved"), x @ weight.T)


@settings(max_examples=30)
@given(shapes, st.integers(1, 3), st.sampled_from(["kron", "interleaved"]))
def test_in_place_merge_adds_exactly_the_weight(shape, terms, output_order) -> None:
    a, b = factors(*shape, terms, torch.float32)
    weight = torch.randn(shape[0] * shape[2], shape[1] * shape[3])
    want = weight + 0.5 * kron_weight(a, b, output_order)
    got = add_kron_(weight, a, b, 0.5, output_order)
    assert got is weight
    torch.testing.assert_close(weight, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merge_into_half_precision_rounds_once(dtype) -> None:
    a, b = factors(4, 8, 5, 3, 2, torch.float32)
    weight = torch.randn(20, 24).to(dtype)
    exact = weight.double() + kron_weight(a.double(), b.double())
    half_a_step = torch.finfo(dtype).eps / 2
    got = add_kron_(weight, a, b).double()
    torch.testing.assert_close(got, exact, rtol=1.001 * half_a_step, atol=1e-6)


@pytest.mark.parametrize("order", ["a_first", "b_first"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(order, dtype) -> None:
    a, b = factors(4, 8, 5, 3, 1, dtype)
    x = torch.randn(2, 7, 24).to(dtype)
    want = (x.double() @ kron_weight(a.double(), b.double()).T).to(dtype)
    got = kron_linear(x, a, b, order)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=4e-2, atol=6e-2)


def test_gradients() -> None:
    a, b = (f.requires_grad_() for f in factors(2, 3, 4, 2, 2))
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    for order in ("a_first", "b_first"):
        assert torch.autograd.gradcheck(lambda *t, o=order: kron_linear(*t, o), (x, a, b))
