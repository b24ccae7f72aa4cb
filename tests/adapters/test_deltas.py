"""The maths between deltas, on random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusekrona.adapters.deltas import (
    DenseDelta,
    KronDelta,
    LowRankDelta,
    as_plain_kron,
    combine,
    difference,
    pad_terms,
    to_low_rank,
    truncate,
)
from diffusekrona.formats.nearest import nearest_kron

SIDE = st.integers(1, 6)
quick = settings(max_examples=40)


@st.composite
def krons(draw) -> KronDelta:
    a1, a2, b1, b2, terms = (draw(SIDE) for _ in range(5))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return KronDelta(
        torch.randn(terms, a1, a2, generator=g),
        torch.randn(terms, b1, b2, generator=g),
        draw(st.sampled_from([1.0, 0.5, -3.0])),
        draw(st.sampled_from(["kron", "interleaved"])),
    )


@quick
@given(krons())
def test_low_rank_is_exact_and_no_larger_than_need_be(delta) -> None:
    low = to_low_rank(delta)
    torch.testing.assert_close(low.weight(), delta.weight(), atol=1e-4, rtol=1e-4)
    (_, a1, a2), (_, b1, b2) = delta.a.shape, delta.b.shape
    assert low.rank <= min(delta.terms * min(a1, a2) * min(b1, b2), *delta.shape)


@quick
@given(krons(), st.integers(1, 8))
def test_truncation_is_the_best_of_its_rank(delta, rank) -> None:
    values = torch.linalg.svdvals(delta.weight().double())
    best = values[rank:].norm().item()
    for form in (delta, to_low_rank(delta), DenseDelta(delta.weight, delta.shape)):
        cut = truncate(form, rank)
        assert cut.rank <= rank
        gap = (cut.weight() - delta.weight()).double().norm().item()
        assert gap == pytest.approx(best, abs=1e-4 * values[0].item() + 1e-6)


@quick
@given(krons())
def test_the_nearest_products_of_a_sum_of_products_are_itself(delta) -> None:
    shape = delta.a.shape[1:]
    found, error = nearest_kron(delta, *shape, delta.terms, delta.output_order)
    assert error < 1e-5
    torch.testing.assert_close(found.weight(), delta.weight(), atol=1e-3, rtol=1e-4)
    errors = [
        nearest_kron(delta, *shape, r, delta.output_order)[1] for r in range(1, delta.terms + 1)
    ]
    assert errors == sorted(errors, reverse=True)


def test_the_nearest_product_is_that_of_the_rearranged_svd() -> None:
    """The error is the singular values left out, by Van Loan and Pitsianis' rearrangement."""
    torch.manual_seed(0)
    matrix = torch.randn(12, 20)
    dense = DenseDelta(lambda: matrix, (12, 20))
    rows = [matrix[i : i + 4, j : j + 5].flatten() for i in (0, 4, 8) for j in (0, 5, 10, 15)]
    values = torch.linalg.svdvals(torch.stack(rows).double())
    for terms in (1, 3):
        _, error = nearest_kron(dense, 3, 4, terms)
        assert error == pytest.approx((values[terms:].norm() / values.norm()).item(), rel=1e-6)


@pytest.mark.parametrize(("a1", "a2"), [(2, 2), (4, 8), (1, 8)])
def test_nothing_is_found_in_nothing(a1, a2) -> None:
    found, error = nearest_kron(DenseDelta(lambda: torch.zeros(4, 8), (4, 8)), a1, a2, 2)
    assert error == 0 and found.weight().abs().max() == 0
    assert torch.isfinite(found.a).all() and torch.isfinite(found.b).all()
    assert found.a.abs().max() > 0 or found.b.abs().max() > 0  # or it could never be trained


@quick
@given(krons())
def test_interleaved_rows_are_put_in_order_where_they_can_be(delta) -> None:
    plain = as_plain_kron(delta)
    torch.testing.assert_close(plain.weight(), delta.weight())
    sides = (delta.a.shape[1], delta.b.shape[1]), (delta.a.shape[2], delta.b.shape[2])
    if any(1 in pair for pair in sides):
        assert plain.output_order == "kron"


@quick
@given(krons(), st.floats(-2, 2), st.floats(-2, 2))
def test_mixing_is_linear(delta, one, two) -> None:
    low = LowRankDelta(torch.ones(delta.shape[0], 1), torch.ones(1, delta.shape[1]))
    dense = DenseDelta(lambda: torch.eye(*delta.shape), delta.shape)
    for other in (delta, low, dense):
        mixed = combine([(one, delta), (two, other)])
        want = one * delta.weight() + two * other.weight()
        torch.testing.assert_close(mixed.weight(), want, atol=1e-3, rtol=1e-4)
        base = torch.zeros(delta.shape)
        mixed.add_to(base)
        torch.testing.assert_close(base, want, atol=1e-3, rtol=1e-4)


def test_mixing_keeps_to_the_leanest_kind() -> None:
    a, b = torch.randn(1, 2, 4), torch.randn(1, 8, 4)
    one, other = KronDelta(a, b), KronDelta(b, a)
    assert combine([(1.0, one), (2.0, one)]).terms == 2
    assert isinstance(combine([(1.0, one), (2.0, other)]), LowRankDelta)
    with pytest.raises(ValueError, match="shapes differ"):
        combine([(1.0, one), (1.0, KronDelta(a, a))])
    torch.testing.assert_close(pad_terms(one, 3).weight(), one.weight())
    assert difference(one, pad_terms(one, 3))[0] < 1e-6
