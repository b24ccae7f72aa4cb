"""LoRA files as diffusers and kohya write them; `adapter_layers` reads them.

    kohya      <stem>.lora_down.weight, .lora_up.weight, .alpha (scale = alpha / rank)
    diffusers  <path>.lora_A.weight, .lora_B.weight (scale 1, or by metadata)

diffusers writes ranks and alphas into the metadata entry `lora_adapter_metadata`; so do we, since
releases before it took one alpha for all layers, wrong for layers of several ranks.

Source: diffusers `loaders/lora_pipeline.py`, `utils/state_dict_utils.py`; kohya-ss/sd-scripts
`networks/lora.py`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import torch

from ..adapters.deltas import LowRankDelta, to_low_rank, truncate
from ..common.errors import UserError
from ..common.tensor_files import stored
from .delta_set import DeltaSet
from .fused_layers import joined
from .layer_names import is_convolution, kernel_of, kohya_stem
from .metadata import linear_projection, metadata_for, names_in_files


def low_rank(source: DeltaSet, rank: int | None) -> dict[str, LowRankDelta]:
    """The source's layers as LoRA: exact, or of at most `rank`. Raises UserError (rank < 1)."""
    if rank is not None and rank < 1:
        raise UserError(f"--rank must be at least 1, not {rank}.")
    layers = {}
    for name, delta in source.layers.items():
        low = to_low_rank(delta) if rank is None else truncate(delta, rank)
        layers[name] = low
    return layers


def shaped(name: str, delta: LowRankDelta, linear: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down) in the shapes of the layer's own kind, linear or convolution."""
    kernel = delta.kernel or (kernel_of(name) if is_convolution(name, linear) else ())
    up, down = delta.up.contiguous(), delta.down.contiguous()
    if kernel:
        return up[:, :, None, None], down.reshape(delta.rank, -1, *kernel)
    return up, down


def diffusers_tensors(
    source: DeltaSet, rank: int | None = None, dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file for diffusers' `pipe.load_lora_weights`."""
    linear = linear_projection(source.family)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for name, delta in joined(low_rank(source, rank), source.family).items():
        up, down = shaped(name, delta, linear)
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
        # PEFT matches the ends of names: so CLIP is found with and without `text_model.`.
        component, _, path = name.partition(".")
        ranks[component][path.removeprefix("text_model.")] = delta.rank
    config = {}
    for component, of in ranks.items():
        common = Counter(of.values()).most_common(1)[0][0]
        pattern = {path: r for path, r in of.items() if r != common}
        config |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.rank_pattern": pattern,
            f"{component}.alpha_pattern": pattern,
            f"{component}.target_modules": sorted(of),
        }
    metadata = {"lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    if source.family:
        metadata["base_family"] = source.family
    return stored(tensors, dtype, source.dtype), metadata


def kohya_tensors(
    source: DeltaSet, title: str, rank: int | None = None, dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file under kohya's names.

    Every layer has the same alpha, the commonest rank, and other ranks have theirs in the factors:
    diffusers reads only one alpha from such a file.
    """
    family = source.need_family()
    known = names_in_files(family)
    layers = low_rank(source, rank)
    alpha = float(Counter(d.rank for d in layers.values()).most_common(1)[0][0])
    tensors: dict[str, torch.Tensor] = {}
    for name, delta in layers.items():
        stem = kohya_stem(name, known.sgm, known.numbered, source.layers_per_block)
        up, down = shaped(name, delta, known.linear_projection)
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.lora_up.weight"] = up * (delta.rank / alpha)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    metadata = metadata_for(family, title, "lora", source.metadata)
    metadata |= {
        "ss_network_dim": str(int(alpha)),
        "ss_network_alpha": str(alpha),
        "layers_per_block": str(source.layers_per_block),
    }
    return stored(tensors, dtype, source.dtype) | source.bundled, metadata
