"""A fully fine-tuned model, as what it changed in its base."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapters.deltas import Delta, DenseDelta
from ..bases.components import is_text_encoder
from ..common.errors import UserError
from .delta_set import DeltaSet
from .full_model import FullModel
from .model_pairs import Pair, pairs, unpaired

WHOLE = "full fine-tune"


def read(tuned: FullModel, base: FullModel) -> DeltaSet:
    """tuned - base: per attention projection, and for every tensor as an addition.

    Text encoders' projections are layers only where they differ.

    Raises:
        UserError: models of different families or sizes.
    """
    if tuned.family and base.family and tuned.family != base.family:
        raise UserError(
            f"{tuned.root} is {tuned.family}, the base {base.root} is {base.family}: give the base "
            "that it was fine-tuned from."
        )
    layers: dict[str, Delta] = {}
    for name in sorted(set(tuned.projections())):
        if base.locate(name) is None:
            raise UserError(f"{tuned.root} has {name}, which the base {base.root} lacks.")
        (ref, index), change = tuned.find(name), _change(tuned, base, name)
        if not is_text_encoder(name) or change().abs().max() > 0:
            rows, columns = change().shape if index != slice(None) else ref.shape
            layers[name] = DenseDelta(change, (rows, columns))
    if not layers:
        raise UserError(f"{tuned.root} has no attention projections in common with {base.root}.")
    everything = list(pairs(base, tuned))
    return DeltaSet(
        layers,
        WHOLE,
        tuned.family or base.family,
        {"base_model": str(base.root)},
        base.layers_per_block,
        torch.float32,
        additions={pair.ref: _difference(base, pair) for pair in everything if pair.fits},
    )


def _difference(base: FullModel, pair: Pair) -> Callable[[], torch.Tensor]:
    return lambda: pair.other().float() - base.load(pair.ref).float()


def what_layers_leave_out(tuned: FullModel, base: FullModel) -> list[str]:
    """Notes on what the attention projections alone do not hold: changes, and tensors of one only.

    A difference is a change where it is larger than the coarser dtype's rounding.
    """
    taken = {base.find(name)[0] for name in tuned.projections()}
    worst, count, largest = "", 0, 0.0
    for pair in pairs(base, tuned):
        if pair.ref in taken or not pair.fits:
            continue
        old, new = base.load(pair.ref).float(), pair.other().float()
        norm = old.norm() if old.any() else new.norm()  # what was zero has changed by all it is
        change = ((new - old).norm() / norm.clamp_min(1e-12)).item()
        rounding = max(torch.finfo(d).eps for d in (pair.ref.dtype, pair.other_dtype))
        if change > max(1e-6, rounding):
            count += 1
            if change > largest:
                worst, largest = pair.name, change
    notes = []
    if count:
        notes.append(
            f"{count} tensors outside the attention projections changed too and are left out; the "
            f"most, {largest:.2g} of its norm: {worst}. --to merged keeps them."
        )
    return notes + [f"left out: {line}" for line in misfits(tuned, base)]


def misfits(tuned: FullModel, base: FullModel) -> list[str]:
    """What of the tuned model has no place in the base: other shapes, other tensors."""
    shapes = [pair.name for pair in pairs(base, tuned) if not pair.fits]
    more = unpaired(base, tuned)
    lines = [f"{len(shapes)} tensors of other shapes, such as {shapes[0]}"] if shapes else []
    return lines + ([f"{len(more)} tensors that the base lacks, such as {more[0]}"] if more else [])


def _change(tuned: FullModel, base: FullModel, name: str) -> Callable[[], torch.Tensor]:
    def change() -> torch.Tensor:
        one, other = tuned.weight(name), base.weight(name)
        if one.shape != other.shape:
            raise UserError(
                f"{name} is {tuple(one.shape)} in {tuned.root}, {tuple(other.shape)} in the base."
            )
        return one - other

    return change
