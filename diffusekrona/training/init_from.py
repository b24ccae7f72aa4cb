"""Starting a run from an adapter that is there, in any format that `formats` reads.

The run's own adapter, with its factors or rank, takes the file's deltas over exactly, or the run is
refused: nothing is approximated here (`diffusekrona.convert` does that, and says by how much).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..adapters.deltas import Delta, KronDelta, to_low_rank
from ..adapters.lora_method import lora_scale
from ..adapters.methods import method_of
from ..common.errors import UserError
from ..formats.delta_set import Hints
from ..formats.recognise import READERS, recognise
from ..krona import KronAConfig

Tensors = dict[str, torch.Tensor]


def start_from(
    source: Path | str, models: Mapping[str, nn.Module], family: str, adapter_name: str
) -> int:
    """Give the adapters of `models` the deltas of an adapter file; returns how many layers.

    Layers that the file does not have start without a delta.

    Args:
        models: component name to model, with the run's adapter on it.
        family: of the base.

    Raises:
        UserError: the file cannot be read, or this run's adapter cannot hold it exactly.
    """
    kind, path = recognise(source)
    if kind not in READERS:
        raise UserError(f"--init_from {source}: a whole model is not an adapter; convert it first.")
    found = READERS[kind](path, Hints(family))
    if found.family not in (None, family):
        raise UserError(f"--init_from {source}: it is for {found.family}, the base is {family}.")
    left = dict(found.layers)
    for component, model in models.items():
        own = get_peft_model_state_dict(model, adapter_name=adapter_name)
        config: Any = cast(Any, model).peft_config[adapter_name]
        method = method_of(config)
        fill = {"krona": _fill_krona, "lora": _fill_lora}[method.name]
        for layer in method.by_layer(own):
            names = (f"{component}.{layer}", f"{component}.text_model.{layer}")
            delta = next((left.pop(name) for name in names if name in left), None)
            try:
                own |= fill(layer, own, delta, config)
            except UserError as error:
                raise UserError(f"--init_from {source}: {layer}: {error}") from error
        set_peft_model_state_dict(model, own, adapter_name=adapter_name)
    if left:
        raise UserError(
            f"--init_from {source}: it adapts {len(left)} layers that this run does not, the first "
            f"{min(left)}: adapt them too (--attn_update_unet, --train_text_encoder …)."
        )
    return len(found.layers)


def _fill_krona(layer: str, own: Tensors, delta: Delta | None, config: KronAConfig) -> Tensors:
    """The layer's factors with `delta` in their first terms; the other terms are zero."""
    a, b = own[f"{layer}.krona_a"].clone(), own[f"{layer}.krona_b"].clone()
    terms_a, terms_b = (a, b) if a.dim() == 3 else (a[None], b[None])
    terms_b.zero_()
    if delta is not None:
        if not isinstance(delta, KronDelta):
            raise UserError("it is not a Kronecker product: use --adapter_type lora.")
        if delta.output_order != config.output_order and delta.a.shape[1] > 1:
            raise UserError(f"it needs --output_order {delta.output_order}.")
        terms, a1, a2 = delta.a.shape
        if (a1, a2) != tuple(terms_a.shape[1:]) or delta.b.shape[1:] != terms_b.shape[1:]:
            raise UserError(f"it has factors a1={a1}, a2={a2}: give --a1, --a2 or --factors so.")
        if terms > len(terms_a):
            raise UserError(f"it has {terms} terms: give --terms {terms}.")
        terms_a[:terms] = delta.a
        terms_b[:terms] = delta.b * (delta.scale / config.scale)
    return {f"{layer}.krona_a": a, f"{layer}.krona_b": b}


def _fill_lora(layer: str, own: Tensors, delta: Delta | None, config: LoraConfig) -> Tensors:
    """The layer's factors with `delta` in their first ranks; the other ranks are zero."""
    down, up = own[f"{layer}.lora_A.weight"].clone(), own[f"{layer}.lora_B.weight"].clone()
    up.zero_()
    if delta is not None:
        low = to_low_rank(delta)
        rank = low.down.shape[0]
        if (low.up.shape[0], low.down.shape[1]) != (up.shape[0], down.shape[1]):
            raise UserError("it is of another shape.")
        if rank > down.shape[0]:
            raise UserError(f"it has rank {rank}: give --rank {rank}, or more.")
        down[:rank] = low.down
        up[:, :rank] = low.up / lora_scale(config, layer)
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
