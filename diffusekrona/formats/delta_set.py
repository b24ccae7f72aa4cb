"""What every format is read into and written from: one delta per layer, and the file's metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..adapters.deltas import Delta, KronDelta, combine, total_parameters
from ..bases.base import Family
from ..bases.families import FAMILIES, denoiser_names
from ..common.errors import UserError
from .layer_names import names_of
from .metadata import families_of_layers, family_from_metadata
from .needs_base import NeedsBase
from .published_sizes import check_published
from .refs import Ref
from .sgm_names import LAYERS_PER_BLOCK

Kind = TypeVar("Kind", bound=Delta)
LARGEST_LAYER = 2**27  # numbers; SDXL's largest has 2**25


@dataclass
class Hints:
    """What the user says about a file that cannot say it itself; None where unsaid.

    Attributes:
        family: of base models, a name in `bases.families.FAMILIES`.
        layers_per_block: of the base's UNet, for the original's block numbers.
        base_family: of the base given along; believed after what the file itself says.
        skip_unsupported: leave out what cannot be read or written, instead of refusing it.
        as_lora: the user said that the file is a LoRA; what a DyLoRA's file lacks is not missed.
    """

    family: str | None = None
    layers_per_block: int | None = None
    base_family: str | None = None
    skip_unsupported: bool = False
    as_lora: bool = False


@dataclass
class DeltaSet:
    """An adapter in no particular format.

    Attributes:
        layers: `<component>.<module path>` to its delta.
        title: what was read, for people.
        family: of base models, where known.
        metadata: strings carried from file to file (base, prompt, training).
        layers_per_block: of the base's UNet.
        dtype: the source's, in which the factors were stored.
        errors: layer name to relative error, where this is an approximation.
        notes: what the user should know.
        need_base: layers whose delta depends on the base's weight; empty once `resolve` is done.
        vectors: `<layer>.weight` or `.bias` to what is added to that vector; merged models only.
        bundled: textual inversions (`bundle_emb.…`) that kohya's format carries along.
        additions: tensors of the base to what is added to each; of a whole model only.
    """

    layers: dict[str, Delta]
    title: str
    family: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    layers_per_block: int = LAYERS_PER_BLOCK
    dtype: torch.dtype = torch.float32
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    need_base: dict[str, NeedsBase] = field(default_factory=dict)
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)
    bundled: dict[str, torch.Tensor] = field(default_factory=dict)
    additions: dict[Ref, Callable[[], torch.Tensor]] = field(default_factory=dict)

    def parameters(self) -> int:
        vectors = sum(vector.numel() for vector in self.vectors.values())
        return total_parameters(self.layers.values()) + vectors

    def kronecker_layers(self) -> dict[str, KronDelta]:
        """The layers, all of which are Kronecker products. Raises UserError: one is not."""
        found = {name: d for name, d in self.layers.items() if isinstance(d, KronDelta)}
        for name in self.layers:
            if name not in found:
                raise UserError(f"{name} is not a sum of Kronecker products: write LoRA or merged.")
        return found

    def need_family(self) -> str:
        """The family, or a UserError that says how to name it."""
        if self.family is None:
            raise UserError(
                "The file does not say which base models it is for: add --family "
                f"{'|'.join(FAMILIES)}, or --base."
            )
        return self.family


def by_component(layers: Mapping[str, Kind]) -> dict[str, dict[str, Kind]]:
    """Component, in a fixed order, to its layers by module path."""
    found: dict[str, dict[str, Kind]] = {}
    for component in (*denoiser_names(), "text_encoder", "text_encoder_2"):
        head = component + "."
        own = {n.removeprefix(head): d for n, d in layers.items() if n.startswith(head)}
        if own:
            found[component] = own
    return found


def named_layers(
    stems: Sequence[str], where: Path | str, metadata: Mapping[str, str], hints: Hints
) -> tuple[dict[str, str], int]:
    """Stem to layer name, and the `layers_per_block` under which they were read."""
    layers = hints.layers_per_block or layers_from_metadata(metadata)
    return names_of(stems, where, layers), layers


def layers_from_metadata(metadata: Mapping[str, str]) -> int:
    """`layers_per_block` as our files note it, else that of every published model."""
    noted = metadata.get("layers_per_block", "")
    return int(noted) if re.fullmatch("[1-9]", noted) else LAYERS_PER_BLOCK


def find_family(
    layers: Mapping[str, Delta | NeedsBase],
    stems: Sequence[str],
    where: Path | str,
    metadata: Mapping[str, str],
    hints: Hints,
) -> str | None:
    """The family by what the user, the metadata, the base and the layers say, in that order.

    Raises:
        UserError: the layers are of several families, or not of the one that the user named.
    """
    noted = family_from_metadata(metadata)
    for family in FAMILIES.values():
        if noted not in (None, family.name):
            continue
        if family.block_layers and any(_is_of(name, family) for name in layers):
            if hints.family not in (None, family.name):
                raise UserError(
                    f"--family {hints.family}: the layers of {where} are those of {family.name}."
                )
            if family.name not in (noted, hints.family, hints.base_family):
                check_published(layers, family, where)
            return family.name
    possible = families_of_layers({name: d.shape for name, d in layers.items()}, stems, where)
    if hints.family and hints.family not in possible:
        raise UserError(
            f"--family {hints.family}: the layers of {where} are those of {' or '.join(possible)}."
        )
    # Of a family that other programs' files do not know, the layers say nothing.
    if noted and (noted in possible or FAMILIES[noted].files is None):
        return hints.family or noted
    seen = possible[0] if len(possible) == 1 else None
    return hints.family or seen or hints.base_family


def _is_of(name: str, family: Family) -> bool:
    """Whether a layer is one of a transformer family's, whole or a part of one."""
    component, _, path = name.partition(".")
    part = family.fused_part(path)
    known = family.read_layer(part[0] if part else path)
    return component == family.denoiser and known is not None


def check_sizes(layers: Mapping[str, Delta], where: Path | str) -> None:
    """Refuse layers larger than any model's: two thin factors can make a matrix of terabytes.

    And numbers that a scale or weight has driven out of fp32.
    """
    for name, delta in layers.items():
        factors = {"a": delta.a * delta.scale} if isinstance(delta, KronDelta) else vars(delta)
        for factor in factors.values():
            if isinstance(factor, torch.Tensor) and not torch.isfinite(factor).all():
                raise UserError(f"{where}: {name} has numbers too large for fp32.")
        rows, columns = delta.shape
        if rows * columns > LARGEST_LAYER:
            raise UserError(f"{where}: {name} would be {rows}x{columns}: no model's layer is.")


def mix(parts: Sequence[tuple[float, DeltaSet]]) -> DeltaSet:
    """Several adapters at weights, as one.

    Raises:
        UserError: adapters of different families, or of bases of different sizes; the layer is
            named.
    """
    first = parts[0][1]
    if len(parts) == 1 and parts[0][0] == 1.0:
        return first
    families = {d.family for _, d in parts if d.family}
    if len(families) > 1:
        raise UserError(
            f"The adapters are for different base models: {', '.join(sorted(families))}."
        )
    layers: dict[str, Delta] = {}
    for name in dict.fromkeys(name for _, d in parts for name in d.layers):
        try:
            layers[name] = combine([(w, d.layers[name]) for w, d in parts if name in d.layers])
        except ValueError as error:
            raise UserError(f"The adapters do not fit one base: {name}, {error}.") from error
    title = "mix of " + " and ".join(f"{w:g} × {d.title}" for w, d in parts)
    return replace(
        first,
        layers=layers,
        title=title,
        family=next(iter(families), None),
        metadata={**first.metadata, "mixed_from": title},
        dtype=torch.float32,
        notes=[note for _, d in parts for note in d.notes],
        vectors=_mixed_vectors(parts),
        bundled={key: tensor for _, d in parts for key, tensor in d.bundled.items()},
        additions=_scaled_additions(*parts[0]) if len(parts) == 1 else {},
    )


def _scaled_additions(weight: float, source: DeltaSet) -> dict[Ref, Callable[[], torch.Tensor]]:
    return {ref: lambda make=make: weight * make() for ref, make in source.additions.items()}


def _mixed_vectors(parts: Sequence[tuple[float, DeltaSet]]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for weight, deltas in parts:
        for name, vector in deltas.vectors.items():
            if name in total and total[name].shape != vector.shape:
                raise UserError(f"The adapters do not fit one base: {name} differs in length.")
            total[name] = total.get(name, 0) + weight * vector
    return total
