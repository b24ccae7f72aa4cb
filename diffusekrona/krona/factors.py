"""Factor pairs (a1, a2) as numbers: which fit a layer, and what they cost.

A is (a1, a2) and B (b1, b2), for a layer with out = a1*b1 and in = a2*b2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Pair = tuple[int, int]


def multiplications(
    a1: int, a2: int, b1: int, b2: int, terms: int = 1, order: str | None = None
) -> int:
    """Multiplications per token; `order` is "a_first", "b_first" or None for the cheaper."""
    a_first = terms * (a1 * a2 * b2 + a1 * b2 * b1)
    b_first = terms * (a2 * b2 * b1 + a1 * a2 * b1)
    return {"a_first": a_first, "b_first": b_first, None: min(a_first, b_first)}[order]


def cheaper_order(a1: int, a2: int, b1: int, b2: int) -> str:
    """Which factor to apply first: "a_first" or "b_first"."""
    a_first = multiplications(a1, a2, b1, b2, order="a_first")
    return "a_first" if a_first <= multiplications(a1, a2, b1, b2, order="b_first") else "b_first"


def divides(a1: int, a2: int, out_features: int, in_features: int) -> bool:
    """Whether (a1, a2) gives whole b1 = out/a1 and b2 = in/a2."""
    return a1 > 0 and a2 > 0 and out_features % a1 == 0 and in_features % a2 == 0


def nearest_pairs(a1: int, a2: int, shapes: Iterable[Pair]) -> list[Pair]:
    """The four pairs nearest to a wanted one, by ratio, that divide every (out, in) in `shapes`."""
    shapes = set(shapes)

    def common(features: set[int]) -> list[int]:
        smallest = min(features)
        return [n for n in range(1, smallest + 1) if all(f % n == 0 for f in features)]

    def distance(have: int, wanted: int) -> float:
        return max(have, wanted) / max(1, min(have, wanted))

    pairs = [
        (m, n)
        for m in common({out for out, _ in shapes})
        for n in common({features for _, features in shapes})
    ]
    return sorted(pairs, key=lambda p: (distance(p[0], a1) * distance(p[1], a2), p))[:4]


def check_pairs(pair_of: Callable[[str], Pair], shapes: Iterable[tuple[str, int, int]]) -> None:
    """Refuse factors that do not divide a layer.

    Args:
        pair_of: layer name to its (a1, a2).
        shapes: (layer name, out_features, in_features) of every layer to adapt.

    Raises:
        ValueError: naming the first layer that does not fit, its features, the pair, and the
            nearest pairs that fit all layers which share the pair.
    """
    shapes = list(shapes)
    for name, out_features, in_features in shapes:
        a1, a2 = pair_of(name)
        if divides(a1, a2, out_features, in_features):
            continue
        sharing = {(o, i) for n, o, i in shapes if pair_of(n) == (a1, a2)}
        near = ", ".join(f"({m}, {n})" for m, n in nearest_pairs(a1, a2, sharing))
        raise ValueError(
            f"Kronecker factors (a1={a1}, a2={a2}) do not fit layer {name!r} of {out_features} out "
            f"and {in_features} in features: a1 must divide out, a2 must divide in. "
            f"Nearest pairs that fit all layers: {near}."
        )
