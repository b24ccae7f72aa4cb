"""Factor pairs as numbers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from diffusekrona.krona.factors import divides, multiplications, nearest_pairs


def test_the_cheaper_order_is_counted() -> None:
    # The reference's figures for 1280 -> 1280.
    assert multiplications(4, 64, 320, 20, order="a_first") == 30_720
    assert multiplications(4, 64, 320, 20, order="b_first") == 491_520
    assert multiplications(64, 8, 20, 160) == 35_840
    assert multiplications(64, 8, 20, 160, order="a_first") == 286_720


@settings(max_examples=50)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.lists(st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([48, 80])), min_size=1),
)
def test_nearest_pairs_fit_all_layers(a1, a2, layers) -> None:
    pairs = nearest_pairs(a1, a2, layers)
    assert pairs
    for m, n in pairs:
        assert all(divides(m, n, out, features) for out, features in layers)
    if all(divides(a1, a2, *layer) for layer in layers):
        assert pairs[0] == (a1, a2)
