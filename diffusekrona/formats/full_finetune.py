"""A fully fine-tuned model, as what it changed in its base's attention projections."""

from __future__ import annotations

import torch

from ..adapters.deltas import DenseDelta
from ..common.errors import UserError
from .delta_set import DeltaSet
from .full_model import FullModel


def read(tuned: FullModel, base: FullModel) -> DeltaSet:
    """tuned - base for every attention projection of both; text encoders only where they differ.

    Raises:
        UserError: models of different families or sizes, or equal ones.
    """
    if tuned.family and base.family and tuned.family != base.family:
        raise UserError(f"{tuned.root} is {tuned.family}, the base {base.root} {base.family}.")
    layers = {}
    for name in sorted(set(tuned.projections())):
        found, own = base.locate(name), tuned.locate(name)
        if found is None:
            raise UserError(f"{tuned.root} has {name}, which the base {base.root} lacks.")
        change = _change(tuned, base, name)
        if name.startswith("unet.") or change().abs().max() > 0:
            rows, columns = change().shape if own[1] != slice(None) else own[0].shape
            layers[name] = DenseDelta(change, (rows, columns))
    if not layers:
        raise UserError(f"{tuned.root} has no attention projections in common with {base.root}.")
    if all(d.weight().abs().max() == 0 for d in layers.values()):
        raise UserError(f"{tuned.root} and {base.root} have equal attention weights.")
    return DeltaSet(
        layers,
        "full fine-tune",
        tuned.family or base.family,
        {"base_model": str(base.root)},
        base.layers_per_block,
        torch.float32,
        notes=[*_other_changes(tuned, base)],
    )


def _change(tuned: FullModel, base: FullModel, name: str):
    def change() -> torch.Tensor:
        one, other = tuned.weight(name), base.weight(name)
        if one.shape != other.shape:
            raise UserError(
                f"{name} is {tuple(one.shape)} in {tuned.root}, {tuple(other.shape)} in the base."
            )
        return one - other

    return change


def _other_changes(tuned: FullModel, base: FullModel) -> list[str]:
    """One note that names the largest change outside the attention projections, if any."""
    if tuned.is_single_file != base.is_single_file:
        return []
    taken = {tuned.locate(name)[0].key for name in tuned.projections()}
    worst, count, largest = "", 0, 0.0
    for component, tensors in tuned.parts.items():
        for key, ref in tensors.items():
            other = base.parts.get(component, {}).get(key)
            if other is None or key in taken or other.shape != ref.shape:
                continue
            if not ref.dtype.is_floating_point or component == "vae":
                continue
            old, new = base.load(other).float(), tuned.load(ref).float()
            change = ((new - old).norm() / old.norm().clamp_min(1e-12)).item()
            if change > 1e-6:
                count += 1
                if change > largest:
                    worst, largest = f"{component}.{key}", change
    if not count:
        return []
    return [
        f"{count} tensors outside the attention projections changed too and are left out; the "
        f"most, {largest:.2g} of its norm: {worst}."
    ]
