"""The same tensors in two whole models, whatever layout each of them has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..bases.names import with_text_model, without_text_model
from ..common.errors import UserError
from . import ldm_layout
from .full_model import FullModel
from .merged import original_entries
from .refs import Ref


@dataclass(frozen=True)
class Pair:
    """A tensor of the base and its namesake in the other model, made in the base's shape."""

    name: str
    ref: Ref
    other: Callable[[], torch.Tensor]
    other_dtype: torch.dtype
    fits: bool


def pairs(base: FullModel, other: FullModel) -> Iterator[Pair]:
    """Every floating-point tensor of the base that the other model has too."""
    if base.is_single_file and not other.is_single_file:
        entries = {entry.name: entry for entry in original_entries(other)}
        for key, ref in base.parts["file"].items():
            if key in entries and ref.dtype.is_floating_point:
                entry = entries[key]
                yield Pair(key, ref, entry.make, entry.dtype, entry.shape == ref.shape)
        return
    for component, tensors in base.parts.items():
        for key, ref in tensors.items():
            if not ref.dtype.is_floating_point:
                continue
            found = _counterpart(base, other, component, key)
            if found is not None:
                own, third, transposed = found
                name = key if base.is_single_file else f"{component}.{key}"
                share = 1 if third is None else 3
                fits = math.prod(own.shape) == share * math.prod(ref.shape)
                make = partial(_part, other, own, third, transposed, ref.shape)
                yield Pair(name, ref, make, own.dtype, fits)


def unpaired(base: FullModel, other: FullModel) -> list[str]:
    """Names of the other model's floating-point tensors that the base does not have."""
    if base.is_single_file == other.is_single_file:
        return [
            f"{component}.{key}"
            for component, tensors in other.parts.items()
            for key, ref in tensors.items()
            if ref.dtype.is_floating_point and _counterpart(other, base, component, key) is None
        ]
    single, folder = (base, other) if base.is_single_file else (other, base)
    have = {e.name for e in original_entries(folder) if e.dtype.is_floating_point}
    own = {k for k, ref in single.parts["file"].items() if ref.dtype.is_floating_point}
    return sorted(have - own if base.is_single_file else own - have)


def _counterpart(
    base: FullModel, other: FullModel, component: str, key: str
) -> tuple[Ref, int | None, bool] | None:
    """The other model's tensor, which third of it is meant (None: all), whether transposed."""
    if base.is_single_file == other.is_single_file:
        tensors = other.parts.get(component, {})
        names = (key, without_text_model(key), with_text_model(key))
        found = next((name for name in names if name in tensors), None)
        return (tensors[found], None, False) if found else None
    place = _place(base, component, key)
    if place is None or place[0] not in other.parts["file"]:
        return None
    name, third, transposed = place
    return other.parts["file"][name], third, transposed


def _place(folder: FullModel, component: str, key: str) -> tuple[str, int | None, bool] | None:
    """Where the original layout has a folder's tensor: key, third of it, whether transposed."""
    try:
        if component == "vae":
            blocks = ldm_layout.up_blocks(folder.parts["vae"])
            return ldm_layout.vae_key(key, blocks)[0], None, False
        if component in ldm_layout.ENCODERS:
            place = ldm_layout.text_place(component, folder.family)
            return ldm_layout.text_key(key, *place) if place else None
        return ldm_layout.unet_key(key, folder.unet_config), None, False
    except UserError:
        return None


def _part(
    other: FullModel, ref: Ref, third: int | None, transposed: bool, shape: tuple[int, ...]
) -> torch.Tensor:
    tensor = other.load(ref)
    if third is not None:
        tensor = tensor.chunk(3)[third]
    return (tensor.t() if transposed else tensor).reshape(shape)
