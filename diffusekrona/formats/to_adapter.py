"""Other programs' adapters as one of ours, in memory: a Kronecker product stays one, all else that
is exact becomes a LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftConfig
from torch.nn.functional import pad

from ..adapters.deltas import KronDelta, to_low_rank
from ..adapters.file import Adapter, config_to_json
from ..adapters.layout import metadata_head
from ..adapters.lora_method import LORA, lora_of
from ..bases.components import is_text_encoder
from ..common.errors import UserError
from ..common.tensor_files import stored
from . import krona_file
from .delta_set import DeltaSet, Hints, by_component
from .recognise import READERS, recognise


def read_as_adapter(source: Path | str) -> Adapter:
    """An adapter in any format that `diffusekrona.convert` reads, as `adapters.file` holds it.

    Raises:
        UserError: it cannot be read, or changes more than linear layers.
    """
    kind, path = recognise(source)
    if kind not in READERS:
        raise UserError(f"{source} is a whole model, not an adapter: convert it first.")
    found = READERS[kind](path, Hints())
    kernels = [name for name, delta in found.layers.items() if any(k > 1 for k in delta.kernel)]
    if kernels or found.need_base or found.vectors:
        name = next(iter([*kernels, *found.need_base, *found.vectors]))
        raise UserError(f"{source} changes more than linear layers ({name}): convert it first.")
    if all(isinstance(delta, KronDelta) for delta in found.layers.values()):
        return krona_file.to_adapter(found)
    return _as_lora(found)


def _as_lora(found: DeltaSet) -> Adapter:
    """All layers of the largest rank, the others filled up with zeros: one rank, scale 1."""
    low = {name: to_low_rank(delta) for name, delta in found.layers.items()}
    rank = max(delta.rank for delta in low.values())
    full = {
        name: replace(
            d, up=pad(d.up, (0, rank - d.rank)), down=pad(d.down, (0, 0, 0, rank - d.rank))
        )
        for name, d in low.items()
    }
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    for component, own in by_component(full).items():
        configs[component], factors = lora_of(own)
        prefix = f"{component}." if is_text_encoder(component) else ""
        tensors |= {prefix + key: tensor for key, tensor in factors.items()}
    values = {name: config_to_json(config) for name, config in configs.items()}
    metadata = found.metadata | metadata_head(LORA.name, values, found.family)
    metadata["converted_from"] = found.title
    return Adapter(stored(tensors, None, found.dtype), configs, metadata)
