"""Any deltas as Kronecker products: as they are where they are some, else the nearest."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..adapters.deltas import Delta, KronDelta
from ..common.errors import UserError
from ..krona.factors import divides, nearest_pairs
from .delta_set import DeltaSet
from .layer_names import is_convolution
from .metadata import linear_projection
from .nearest import nearest_kron
from .report import Options


def with_factors(source: DeltaSet, options: Options, order: str | None = None) -> DeltaSet:
    """The source as Kronecker products: as it is where it is some, else the nearest.

    Args:
        options: `a1`, `a2` and `terms` wanted; None leaves a Kronecker source's own; any other
            source needs a1 and a2, and has one term by default.
        order: row order wanted; None leaves a Kronecker source's own ("kron" for any other).

    Raises:
        UserError: factors that do not divide a layer, or are needed and not given; a convolution,
            unless convolutions are to be left out; nothing else is there.
    """
    a1, a2, terms = options.a1, options.a2, options.terms
    for name, value in (("a1", a1), ("a2", a2), ("terms", terms)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    source = replace(source, layers=_linear_only(source, options.without_convolutions))
    if not options.has_factors and all(
        isinstance(d, KronDelta) and (terms is None or d.terms <= terms)
        for d in source.layers.values()
    ):
        return source
    wanted = {name: _wanted(name, d, a1, a2, order) for name, d in source.layers.items()}
    shapes = {d.shape for d in source.layers.values()}
    for name, delta in source.layers.items():
        rows, columns, _ = wanted[name]
        if not divides(rows, columns, *delta.shape):
            near = ", ".join(f"({m}, {n})" for m, n in nearest_pairs(rows, columns, shapes))
            raise UserError(
                f"Kronecker factors (a1={rows}, a2={columns}) do not fit {name} of "
                f"{delta.shape[0]}x{delta.shape[1]}; nearest that fit all layers: {near}."
            )
    near = {
        name: nearest_kron(delta, *wanted[name][:2], terms or _terms(delta), wanted[name][2])
        for name, delta in source.layers.items()
    }
    return replace(
        source,
        layers={name: delta for name, (delta, _) in near.items()},
        errors={name: error for name, (_, error) in near.items()},
        dtype=torch.float32,
    )


def _wanted(
    name: str, delta: Delta, a1: int | None, a2: int | None, order: str | None
) -> tuple[int, int, str]:
    if isinstance(delta, KronDelta):
        return a1 or delta.a.shape[1], a2 or delta.a.shape[2], order or delta.output_order
    if a1 is None or a2 is None:
        raise UserError(
            f"{name} is not a sum of Kronecker products of one shape: choose the factors of the "
            "nearest with --a1 and --a2 (such as 4 and 64), or write LoRA or merged."
        )
    return a1, a2, order or "kron"


def _terms(delta: Delta) -> int:
    return delta.terms if isinstance(delta, KronDelta) else 1


def _linear_only(source: DeltaSet, drop: bool) -> dict[str, Delta]:
    """The layers that are not convolutions. Raises UserError: there are some, unless `drop`, or
    nothing else."""
    linear = linear_projection(source.family)
    odd = [n for n, d in source.layers.items() if d.kernel or is_convolution(n, linear)]
    nothing_else = len(odd) == len(source.layers)
    if odd and (nothing_else or not drop):
        way_out = "" if nothing_else else "add --drop_convolutions, or "
        raise UserError(
            f"{len(odd)} layers are convolutions, which a Kronecker adapter cannot "
            f"hold, the first {odd[0]}: {way_out}write LoRA or merged."
        )
    if odd:
        source.notes.append(f"left out {len(odd)} convolutions: {', '.join(odd)}")
    return {name: delta for name, delta in source.layers.items() if name not in set(odd)}
