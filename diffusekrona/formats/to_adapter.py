"""Other programs' adapters as one of ours, in memory: a Kronecker product stays one, all else that
is exact becomes a LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import pad

from ..adapters.deltas import KronDelta, to_low_rank
from ..adapters.file import Adapter, config_to_json
from ..adapters.layout import metadata_head
from ..adapters.methods import METHODS
from ..bases.components import is_text_encoder
from ..common.errors import UserError
from ..common.tensor_files import stored
from . import krona_file
from .delta_set import DeltaSet, Hints
from .recognise import READERS, recognise


def read_as_adapter(source: Path | str, family: str | None = None) -> Adapter:
    """An adapter in any format that `diffusekrona.convert` reads, as `adapters.file` holds it.

    Args:
        family: of the base, where the file does not say.

    Raises:
        UserError: it cannot be read, or changes more than linear layers.
    """
    kind, path = recognise(source)
    if kind not in READERS:
        raise UserError(f"{source} is a whole model, not an adapter: convert it first.")
    found = READERS[kind](path, Hints(family))
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
    method = METHODS["lora"]
    tensors: dict[str, torch.Tensor] = {}
    configs = {}
    for component in found.components():
        own = {n.partition(".")[2]: d for n, d in low.items() if n.startswith(component + ".")}
        prefix = f"{component}." if is_text_encoder(component) else ""
        for name, delta in own.items():
            more = rank - delta.rank
            down, up = pad(delta.down, (0, 0, 0, more)), pad(delta.up, (0, more))
            tensors[f"{prefix}{name}.lora_A.weight"] = down.contiguous()
            tensors[f"{prefix}{name}.lora_B.weight"] = up.contiguous()
        configs[component] = method.config_class(
            r=rank, lora_alpha=rank, target_modules=sorted(own)
        )
    values = {name: config_to_json(config) for name, config in configs.items()}
    metadata = found.metadata | metadata_head(method.name, values, found.family)
    metadata["converted_from"] = found.title
    return Adapter(stored(tensors, None, found.dtype), configs, metadata)
