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
from .metadata import names_in_files
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
                own, view = found
                name = key if base.is_single_file else f"{component}.{key}"
                share = 1 if view is _plain or view.args[0] is None else 3
                fits = math.prod(own.shape) == share * math.prod(ref.shape)
                yield Pair(name, ref, partial(view, other, own, ref.shape), own.dtype, fits)


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
) -> tuple[Ref, Callable[..., torch.Tensor]] | None:
    if base.is_single_file == other.is_single_file:
        tensors = other.parts.get(component, {})
        names = (key, without_text_model(key), with_text_model(key))
        found = next((name for name in names if name in tensors), None)
        return (tensors[found], _plain) if found else None
    place = _place(base, component, key)
    ref = other.parts["file"].get(place[0]) if place else None
    if ref is None:
        return None
    if place[1] is None and not place[2]:
        return ref, _plain
    return ref, partial(_part, place[1], place[2])


def _place(folder: FullModel, component: str, key: str) -> tuple[str, int | None, bool] | None:
    """Where the original layout has a folder's tensor: key, third of it, whether transposed."""
    try:
        if component == "unet":
            return ldm_layout.unet_key(key, folder.unet_config), None, False
        if component == "vae":
            return (
                ldm_layout.vae_key(key, ldm_layout.up_blocks(folder.parts["vae"]))[0],
                None,
                False,
            )
        known = names_in_files(folder.family)
        index = ldm_layout.ENCODERS.index(component)
        return ldm_layout.text_key(key, known.text_layouts[index], known.text_prefixes[index])
    except (UserError, KeyError, IndexError, ValueError):
        return None


def _plain(other: FullModel, ref: Ref, shape: tuple[int, ...]) -> torch.Tensor:
    return other.load(ref).reshape(shape)


def _part(
    third: int | None, transposed: bool, other: FullModel, ref: Ref, shape: tuple[int, ...]
) -> torch.Tensor:
    tensor = other.load(ref)
    if third is not None:
        tensor = tensor.chunk(3)[third]
    return (tensor.t() if transposed else tensor).reshape(shape)
