"""Checkpoints of the code published with the DiffuseKronA paper.

`pytorch_lora_weights.safetensors`, keys `unet.<block path>.attn1.processor.to_q_lora.down.weight`
(a2, a1) and `.up.weight` (b1, b2); also `to_k_lora`, `to_v_lora`, `to_out_lora`, any subset, and
the text encoder's. No metadata. Its layer computes

    delta W[i_b*a1 + i_a, j_a*b2 + j_b] = down[j_a, i_a] * up[i_b, j_b]

that is kron(down^T, up) with its rows interleaved, which `output_order` keeps.

LoRA files of the same code have the same keys. They differ in the layers that are
square (all of attn1, attn2's query and output): a1*b1 = a2*b2 in a KronA file, while a LoRA's up
(out, r) and down (r, in) would make that out*in = r*r.

Source: arXiv 2402.17412's repository, `krona.py` and `load_attn_procs.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..adapters.deltas import Delta, KronDelta
from ..common.errors import UserError
from ..common.tensor_files import read_tensors
from . import adapter_layers
from .delta_set import DeltaSet, Hints, find_family, named_layers
from .layer_parts import Parts, group

_KEY = re.compile(r"\w*\.?.+(_lora|\.lora|\.lora_linear_layer|\.lora_layer)\.(down|up)\.weight")
_SQUARE = re.compile(r"attn1\.|attn2\.to_(q|out)|self_attn\.")


def is_candidate(keys: list[str]) -> bool:
    """Whether these may be keys of the published code, KronA or LoRA."""
    return all(_KEY.fullmatch(key) for key in keys)


def is_kronecker(tensors: Mapping[str, torch.Tensor], where: Path | str, hints: Hints) -> bool:
    """Whether a file with such keys holds Kronecker factors (else it is a LoRA).

    Most square layers decide, so that a damaged one is named as such and does not turn the rest.
    """
    stems = _pairs(tensors, where)
    names, _ = named_layers(list(stems), where, {}, hints)
    kron = lora_ = 0
    for stem, parts in stems.items():
        if _SQUARE.search(names[stem]):
            kron += _is_square_product(parts)
            lora_ += parts["down"].shape[:2] == parts["up"].shape[1::-1]
    if kron or lora_:
        return kron >= lora_
    return any(parts["up"].shape[1] != parts["down"].shape[0] for parts in stems.values())


def _pairs(tensors: Mapping[str, torch.Tensor], where: Path | str) -> dict[str, Parts]:
    stems = group(tensors, where).stems
    for stem, parts in stems.items():
        for part in ("up", "down"):
            if part not in parts:
                key = next(k for k in tensors if k.startswith(stem))
                raise UserError(f"{where} holds {key} without its {part} factor.")
    return stems


def _is_square_product(parts: Mapping[str, torch.Tensor]) -> bool:
    down, up = parts["down"].shape, parts["up"].shape
    return len(down) == len(up) == 2 and down[1] * up[0] == down[0] * up[1]


def read(path: Path, hints: Hints) -> DeltaSet:
    """A KronA or LoRA checkpoint of the published code. Raises UserError."""
    tensors, metadata = read_tensors(path)
    return from_tensors(tensors, metadata, path, hints)


def from_tensors(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: Path, hints: Hints
) -> DeltaSet:
    """`read` for tensors in memory."""
    if not is_kronecker(tensors, where, hints):
        title = "LoRA checkpoint of the published code or of an older diffusers"
        return replace(adapter_layers.from_tensors(tensors, metadata, where, hints), title=title)
    stems = _pairs(tensors, where)
    names, per_block = named_layers(list(stems), where, metadata, hints)
    layers: dict[str, Delta] = {}
    for stem, parts in stems.items():
        down, up = parts["down"], parts["up"]
        whole = down.dim() == up.dim() == 2 and down.numel() and up.numel()
        if not whole or (_SQUARE.search(names[stem]) and not _is_square_product(parts)):
            raise UserError(
                f"{where}: the factors of {stem}, {tuple(down.shape)} and {tuple(up.shape)}, "
                "do not make a weight of that layer."
            )
        # Not contiguous(): that keeps a one-row view's odd strides, which torch.kron trips over.
        a = down.float().t().clone(memory_format=torch.contiguous_format)
        layers[names[stem]] = KronDelta(a[None], up.float()[None], output_order="interleaved")
    dtypes = Counter(t.dtype for t in tensors.values())
    return DeltaSet(
        layers,
        "published DiffuseKronA checkpoint",
        find_family(layers, list(stems), where, metadata, hints),
        dict(metadata),
        per_block,
        dtypes.most_common(1)[0][0],
    )
