"""LoKr files: delta W = kron(w1, w2), LyCORIS' format, so w1 is our A and w2 our B.

Either factor is whole or a product: `lokr_w1` or `lokr_w1_a @ lokr_w1_b`, `lokr_w2` likewise. The
scale is alpha / rank where a factor is a product, and 1 where both are whole, whatever `alpha`
says; PEFT alone always scales by alpha / r, which its config tells (`peft_folder`). Written with
both factors whole and the scale in w1, the file means the same to every reader.

`lokr_t2`, a Tucker core, exists for convolutions only and is refused, as is a DoRA magnitude.

Source: KohakuBlueleaf/LyCORIS `lycoris/modules/lokr.py`; ComfyUI `comfy/weight_adapter/lokr.py`;
InvokeAI `patches/layers/lokr_layer.py`; Nerogar/OneTrainer and ostris/ai-toolkit write the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from ..adapters.deltas import Delta, KronDelta, as_plain_kron, krons_equally
from ..adapters.methods import valid_scale
from ..common.errors import UserError
from ..common.tensor_files import read_tensors, stored
from .delta_set import DeltaSet, Hints, find_family, named_layers
from .layer_names import kohya_stem
from .metadata import metadata_for, names_in_files
from .to_kronecker import with_factors

_PART = re.compile(r"(?P<stem>.+)\.(?P<part>lokr_w[12](?:_[ab])?|alpha)(?:\.(?!weight)\w+)?")


def is_lokr_key(key: str) -> bool:
    found = _PART.fullmatch(key)
    return bool(found and found["part"] != "alpha")


def read(path: Path, hints: Hints) -> DeltaSet:
    """A LoKr file of any of the programs. Raises UserError."""
    tensors, metadata = read_tensors(path)
    return from_tensors(tensors, metadata, path, hints, saved_scale(metadata, path))


def from_tensors(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    where: Path | str,
    hints: Hints,
    scale: float | Mapping[str, float] | None = None,
) -> DeltaSet:
    """`read` for tensors in memory.

    Args:
        scale: PEFT's alpha / r, for all stems or by stem; None for LyCORIS' rule.
    """
    stems = _group(tensors, where)
    names, per_block = named_layers(list(stems), where, metadata, hints)
    layers: dict[str, Delta] = {}
    for stem, parts in stems.items():
        peft = scale.get(stem) if isinstance(scale, Mapping) else scale
        layers[names[stem]] = _delta(stem, parts, where, peft)
    dtypes = Counter(t.dtype for t in tensors.values() if t.dim() > 1)
    return DeltaSet(
        layers,
        "LoKr",
        find_family(layers, list(stems), where, metadata, hints),
        dict(metadata),
        per_block,
        dtypes.most_common(1)[0][0],
    )


def saved_scale(metadata: Mapping[str, str], where: Path | str) -> float | None:
    """alpha / r of a file that diffusers saved from a PEFT LoKr, else None."""
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        fields = {key.rpartition(".")[2]: value for key, value in flat.items()}
        known = {"alpha", "r"} <= fields.keys()
        return valid_scale(fields["alpha"] / fields["r"], where) if known else None
    except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{where}: lora_adapter_metadata is damaged ({error}).") from error


def _group(
    tensors: Mapping[str, torch.Tensor], where: Path | str
) -> dict[str, dict[str, torch.Tensor]]:
    stems: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        found = _PART.fullmatch(key)
        if not found:
            raise UserError(f"{where}: {key} {_refusal(key)}")
        whole = tensor.is_floating_point() or found["part"] == "alpha"  # some write alpha as int
        if not whole or tensor.numel() == 0:
            raise UserError(f"{where}: {key} of shape {tuple(tensor.shape)} is no factor.")
        stems[found["stem"]][found["part"]] = tensor
    for stem, parts in stems.items():
        for factor in ("lokr_w1", "lokr_w2"):
            whole, product = factor in parts, (f"{factor}_a" in parts, f"{factor}_b" in parts)
            if whole == any(product) or any(product) != all(product):
                key = next(k for k in tensors if k.startswith(stem + "."))
                raise UserError(
                    f"{where} holds {key} without a whole {factor} beside it: "
                    f"one of {factor} and {factor}_a with {factor}_b is needed."
                )
    return dict(stems)


def _refusal(key: str) -> str:
    if key.endswith(("lokr_t1", "lokr_t2")):
        return "is a Tucker core of a convolution, which no Kronecker adapter has a place for."
    if "dora_scale" in key or "magnitude" in key:
        return "is a DoRA magnitude, which rescales the base's own weights: no factors hold it."
    return "is no part of a LoKr."


def _delta(
    stem: str, parts: Mapping[str, torch.Tensor], where: Path | str, peft: float | None
) -> KronDelta:
    a, rank_a = _factor(stem, parts, "lokr_w1", where)
    b, rank_b = _factor(stem, parts, "lokr_w2", where)
    rank = rank_a or rank_b  # LyCORIS gives both products one rank
    scale = peft
    if scale is None:
        alpha = parts.get("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise UserError(f"{where}: {stem}.alpha is no single number.")
        scale = float(alpha) / rank if alpha is not None and rank else 1.0
    kernel = tuple(b.shape[2:])
    return KronDelta(a[None], b.flatten(1)[None], scale, kernel=kernel)


def _factor(
    stem: str, parts: Mapping[str, torch.Tensor], name: str, where: Path | str
) -> tuple[torch.Tensor, int | None]:
    """One factor, fp32, and the rank of its product (None where it is whole)."""
    if name in parts:
        whole = parts[name].float()
        if whole.dim() != 2 and not (whole.dim() == 4 and name == "lokr_w2"):
            raise UserError(f"{where}: {stem}.{name} of shape {tuple(whole.shape)} is no factor.")
        return whole, None
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if left.dim() != 2 or right.dim() not in (2, 4) or left.shape[1] != right.shape[0]:
        raise UserError(
            f"{where}: {stem}.{name}_a {tuple(left.shape)} and _b {tuple(right.shape)} "
            "do not multiply."
        )
    product = left.double() @ right.double().flatten(1)
    return product.reshape(left.shape[0], *right.shape[1:]).float(), left.shape[1]


def single_products(source: DeltaSet, a1: int | None, a2: int | None) -> DeltaSet:
    """The source with every layer one Kronecker product in torch.kron's order.

    Raises:
        UserError: what LoKr has no place for, unless factors to approximate it with are given.
    """
    layers = {
        name: as_plain_kron(d) if isinstance(d, KronDelta) else d
        for name, d in source.layers.items()
    }
    plain = DeltaSet(**{**vars(source), "layers": layers})
    if a1 is None and a2 is None:
        for name, delta in layers.items():
            if not krons_equally(delta):
                raise UserError(
                    f"{name} {_why_not(delta)}, and LoKr has no place for that: write it exactly "
                    "with --to lora or --to merged, or the nearest LoKr with --a1 and --a2."
                )
        return plain
    return with_factors(plain, a1, a2, 1, order="kron")


def _why_not(delta: Delta) -> str:
    if not isinstance(delta, KronDelta):
        return "is no Kronecker product"
    if delta.terms > 1:
        return f"is a sum of {delta.terms} Kronecker products"
    return "has interleaved rows (the published code's order)"


def _factors(delta: KronDelta) -> tuple[torch.Tensor, torch.Tensor]:
    b = delta.b[0]
    if delta.kernel:
        b = b.reshape(b.shape[0], -1, *delta.kernel)
    return (delta.a[0] * delta.scale).contiguous(), b.contiguous()


def kohya_tensors(
    source: DeltaSet,
    title: str,
    dtype: torch.dtype | None = None,
    a1: int | None = None,
    a2: int | None = None,
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """What is written, its tensors and metadata, under kohya's names (ComfyUI, Forge, A1111 …)."""
    source = single_products(source, a1, a2)
    family = source.need_family()
    known = names_in_files(family)
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in source.layers.items():
        stem = kohya_stem(name, known.sgm, known.numbered, source.layers_per_block)
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)  # noted for loaders that want one; unused
    metadata = metadata_for(family, title, "lokr", source.metadata)
    metadata |= {
        "ss_network_dim": "1",
        "ss_network_alpha": "1.0",
        "layers_per_block": str(source.layers_per_block),
    }
    return source, stored(tensors, dtype, source.dtype), metadata


def diffusers_tensors(
    source: DeltaSet,
    dtype: torch.dtype | None = None,
    a1: int | None = None,
    a2: int | None = None,
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` under diffusers' module paths, for `unet.load_lora_adapter(…, prefix=None)`.

    That loader takes square w1 only, and a UNet's paths bear no prefix.
    """
    source = single_products(source, a1, a2)
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in source.layers.items():
        stem = name.removeprefix("unet.")
        tensors[f"{stem}.lokr_w1"], tensors[f"{stem}.lokr_w2"] = _factors(delta)
    uneven = [n for n, d in source.layers.items() if d.a.shape[1] != d.a.shape[2]]
    if uneven:
        source.notes.append(
            "A is not square, so diffusers' and PEFT's LoKr loaders will refuse this file: "
            "write --to lora for them."
        )
    metadata = {"base_family": source.family} if source.family else {}
    return source, stored(tensors, dtype, source.dtype), metadata
