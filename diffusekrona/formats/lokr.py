"""LoKr files, LyCORIS' format: delta W = kron(w1, w2), so w1 is our A and w2 our B.

Written with both factors whole and the scale in w1, the file means the same to every reader.
`adapter_layers` reads LoKr files of every kind.

Source: KohakuBlueleaf/LyCORIS `lycoris/modules/lokr.py`; ComfyUI `comfy/weight_adapter/lokr.py`;
InvokeAI `patches/layers/lokr_layer.py`; Nerogar/OneTrainer and ostris/ai-toolkit write the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from ..adapters.deltas import Delta, KronDelta, LowRankDelta, as_plain_kron, krons_equally
from ..bases.base import Family
from ..bases.families import FAMILIES
from ..common.errors import UserError
from ..common.tensor_files import stored
from .delta_set import DeltaSet
from .fused_layers import fused_names, in_whole
from .layer_names import kohya_stem
from .lora import publisher_name, shaped
from .metadata import metadata_for, names_in_files
from .report import Options
from .to_kronecker import with_factors


def single_products(source: DeltaSet, options: Options) -> DeltaSet:
    """The source with every layer one Kronecker product in torch.kron's order.

    Args:
        options: with factors, the nearest products of these, of linear layers alone.

    Raises:
        UserError: what LoKr has no place for, unless factors to approximate it with are given.
    """
    layers = {
        name: as_plain_kron(d) if isinstance(d, KronDelta) else d
        for name, d in source.layers.items()
    }
    plain = replace(source, layers=layers)
    if not options.has_factors:
        for name, delta in layers.items():
            if not krons_equally(delta):
                raise UserError(
                    f"{name} {_why_not(delta)}, which LoKr cannot hold: write it exactly "
                    "with --to lora or --to merged, or the nearest LoKr with --a1 and --a2."
                )
        return plain
    return with_factors(plain, replace(options, terms=1), order="kron")


def _why_not(delta: Delta) -> str:
    if not isinstance(delta, KronDelta):
        return "is not a Kronecker product"
    if delta.terms > 1:
        return f"is a sum of {delta.terms} Kronecker products"
    return "has interleaved rows (the published code's order)"


def _factors(delta: KronDelta) -> tuple[torch.Tensor, torch.Tensor]:
    b = delta.b[0]
    if delta.kernel:
        b = b.reshape(b.shape[0], -1, *delta.kernel)
    return (delta.a[0] * delta.scale).contiguous(), b.contiguous()


def kohya_tensors(
    source: DeltaSet, title: str, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """What is written, its tensors and metadata, under kohya's names (ComfyUI, Forge, A1111 …)."""
    family = source.need_family()
    if FAMILIES[family].block_layers:
        return _transformer_tensors(source, FAMILIES[family], options)
    known = names_in_files(family)
    low = {} if options.has_factors else _low_rank_beside(source)
    products = {n: d for n, d in source.layers.items() if n not in low}
    source = single_products(replace(source, layers=products), options)
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in source.kronecker_layers().items():
        stem = kohya_stem(name, known.sgm, known.numbered, source.layers_per_block)
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)  # not used; for loaders that want one
    for name, delta in low.items():
        stem = kohya_stem(name, known.sgm, known.numbered, source.layers_per_block)
        up, down = shaped(name, delta, known.linear_projection)
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
        tensors[f"{stem}.alpha"] = torch.tensor(float(delta.rank))
    metadata = metadata_for(family, title, "lokr", source.metadata)
    metadata |= {
        "ss_network_dim": "1",
        "ss_network_alpha": "1.0",
        "layers_per_block": str(source.layers_per_block),
    }
    if low:
        source.notes.append(f"{len(low)} layers are LoRA and stay so in the same file")
        source = replace(source, layers=source.layers | low)
    return source, stored(tensors, options.dtype, source.dtype) | source.bundled, metadata


def _transformer_tensors(
    source: DeltaSet, family: Family, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` of a transformer, under diffusers' names, as ComfyUI reads them.

    Source: ComfyUI `comfy/lora.py`, `comfy/utils.py` (`flux_to_diffusers`, `z_image_to_diffusers`).
    """
    source = single_products(source, options)
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in source.kronecker_layers().items():
        component, _, path = name.partition(".")
        place = family.file_name(path)
        if place == path:
            place, delta = in_whole(path, delta, family)
        stem = f"{component}.{place}"
        if f"{stem}.alpha" in tensors:
            raise UserError(
                f"{stem} holds several projections, and LoKr cannot hold two products in one "
                "layer: write --to lora or --to merged."
            )
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    return source, stored(tensors, options.dtype, source.dtype), {"base_family": family.name}


def _low_rank_beside(source: DeltaSet) -> dict[str, LowRankDelta]:
    """The LoRA layers of a file that mixes them with Kronecker products; else none."""
    low = {n: d for n, d in source.layers.items() if isinstance(d, LowRankDelta)}
    return low if any(isinstance(d, KronDelta) for d in source.layers.values()) else {}


def diffusers_tensors(
    source: DeltaSet, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` under diffusers' module paths, for `unet.load_lora_adapter(…, prefix=None)`.

    That loader takes square w1 only, and a UNet's paths have no prefix; a transformer's have the
    component's, for `pipe.load_lora_weights`.
    """
    _refuse_slices(fused_names(source.layers, source.family), "--to lora")
    source = single_products(source, options)
    layers = source.kronecker_layers()
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in layers.items():
        stem = name.removeprefix("unet.")
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
    _note_refusal(
        source, _not_square(layers), "A is not square", "diffusers' and PEFT's LoKr loaders"
    )
    metadata = {"base_family": source.family} if source.family else {}
    return source, stored(tensors, options.dtype, source.dtype), metadata


def _refuse_slices(names: list[str], way_out: str) -> None:
    if names:
        raise UserError(
            f"{names[0]} is a slice of a layer of the base, and LoKr cannot hold several in "
            f"one: write it exactly with {way_out} or --to merged."
        )


def toolkit_tensors(
    source: DeltaSet, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` of a transformer for ai-toolkit, whose loader takes square w1 only."""
    family = FAMILIES[source.need_family()]
    parts = fused_names(source.layers, family.name)
    if family.toolkit_has_publisher_names:
        parts += [n for n in source.layers if family.joint_part(n.partition(".")[2])]
    _refuse_slices(parts, "--to lora-ai-toolkit")
    source = single_products(source, options)
    layers = source.kronecker_layers()
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in layers.items():
        path = name.partition(".")[2]
        if family.toolkit_has_publisher_names:
            path = publisher_name(family, path)
        stem = f"diffusion_model.{path}"
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    _note_refusal(
        source, _not_square(layers), "A is not square", "ai-toolkit's and diffusers' LoKr loaders"
    )
    return source, stored(tensors, options.dtype, source.dtype), {"base_family": family.name}


def lycoris_tensors(
    source: DeltaSet, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` under LyCORIS' own names, for its wrapper and for SimpleTuner; a UNet's only.

    LyCORIS takes a square w1 of n x n with n <= out / n and n <= in / n, and few others.
    """
    source = single_products(source, options)
    layers = source.kronecker_layers()
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in layers.items():
        stem = "lycoris_" + name.removeprefix("unet.").replace(".", "_")
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    refused = [n for n, d in layers.items() if not lycoris_takes(d)]
    _note_refusal(source, refused, "A has a shape that LyCORIS does not make", "LyCORIS' loader")
    metadata = {"base_family": source.family} if source.family else {}
    return source, stored(tensors, options.dtype, source.dtype), metadata


def _not_square(layers: Mapping[str, KronDelta]) -> list[str]:
    return [name for name, d in layers.items() if d.a.shape[1] != d.a.shape[2]]


def lycoris_takes(delta: KronDelta) -> bool:
    """Whether LyCORIS 4.1.3 loads these factors.

    It makes w1 again, from the layer's size and one number that it guesses from the factors.
    """
    (_, a1, a2), (_, b1, b2) = delta.a.shape, delta.b.shape
    (out, columns), one, other = delta.shape, max(a1, a2), max(b1, b2)
    if (a1, a2) == (_lycoris_split(out, None), _lycoris_split(columns, None)):
        return True
    usable = [f for f in (one, other) if f in (a1, b1) and f in (a2, b2)]
    factor = usable[0] if usable else min(one, other)
    return (a1, a2) == (_lycoris_split(out, factor), _lycoris_split(columns, factor))


def _lycoris_split(size: int, factor: int | None) -> int:
    """The smaller part in which LyCORIS splits a dimension: at most its root, and the factor."""
    if factor is not None and size % factor == 0:
        return min(factor, size // factor)
    most = min(math.isqrt(size), factor or size)
    return next(n for n in range(most, 0, -1) if size % n == 0)


def _note_refusal(source: DeltaSet, layers: list[str], why: str, who: str) -> None:
    if layers:
        source.notes.append(
            f"in {len(layers)} layers {why}, such as {layers[0]}: {who} will refuse this file; "
            "write --to lora for them"
        )
