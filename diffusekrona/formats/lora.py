"""LoRA files as diffusers and kohya write them; `adapter_layers` reads them.

    kohya       <stem>.lora_down.weight, .lora_up.weight, .alpha (scale = alpha / rank)
    diffusers   <path>.lora_A.weight, .lora_B.weight (scale 1, or by metadata)
    ai-toolkit  diffusion_model.<path>.lora_A.weight, .lora_B.weight (scale 1)

Of transformers, kohya's programs and some models of ai-toolkit have the publisher's names of layers
(`LayerNames.publisher_name`), with q, k and v in one.

diffusers writes ranks and alphas into the metadata entry `lora_adapter_metadata`; so do we, since
releases before it took one alpha for all layers, wrong for layers of several ranks.

Source: diffusers `loaders/lora_pipeline.py`, `loaders/lora_conversion_utils.py`,
`utils/state_dict_utils.py`; kohya-ss/sd-scripts `networks/lora.py`; ostris/ai-toolkit
`toolkit/network_mixins.py`; ComfyUI `comfy/lora.py`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping

import torch

from ..adapters.deltas import LowRankDelta, to_low_rank, truncate
from ..bases.base import Family
from ..bases.families import FAMILIES
from ..bases.names import without_text_model
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
        ranks[component][without_text_model(path)] = delta.rank
    return stored(tensors, dtype, source.dtype), _metadata(ranks, source.family)


def _metadata(ranks: Mapping[str, Mapping[str, int]], family: str | None) -> dict[str, str]:
    """What diffusers reads beside the tensors.

    Args:
        ranks: component to rank by path, as diffusers names its layers.
    """
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
    return metadata | ({"base_family": family} if family else {})


def toolkit_tensors(
    source: DeltaSet, rank: int | None = None, dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a transformer's file as ai-toolkit names them."""
    family = FAMILIES[source.need_family()]
    publisher = family.toolkit_has_publisher_names
    tensors: dict[str, torch.Tensor] = {}
    layers = joined(low_rank(source, rank), family.name, publisher)
    for name, delta in layers.items():
        path = name.partition(".")[2]
        stem = "diffusion_model." + (publisher_name(family, path) if publisher else path)
        tensors[f"{stem}.lora_A.weight"] = delta.down.contiguous()
        tensors[f"{stem}.lora_B.weight"] = delta.up.contiguous()
    return stored(tensors, dtype, source.dtype), _publisher_metadata(layers, family)


def publisher_name(family: Family, path: str) -> str:
    """`LayerNames.publisher_name`. Raises UserError: the publisher's code has no such layer."""
    name = family.publisher_name(path)
    if name is None:
        raise UserError(f"{path} has no name in the code of {family.title}'s publisher.")
    return name


def _publisher_metadata(layers: Mapping[str, LowRankDelta], family: Family) -> dict[str, str]:
    """`_metadata` of layers some of which are several in diffusers, whose loaders split them."""
    ranks = dict[str, int]()
    for name, delta in layers.items():
        path = name.partition(".")[2]
        parts = family.joint_layers.get(path.rpartition(".")[2], ())
        ranks |= {family.part_name(path, part): delta.rank for part in parts} or {path: delta.rank}
    return _metadata({family.denoiser: ranks}, family.name)


def kohya_tensors(
    source: DeltaSet, title: str, rank: int | None = None, dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file under kohya's names.

    Every layer has the same alpha, the commonest rank, and other ranks have theirs in the factors:
    diffusers reads only one alpha from such a file.
    """
    family = source.need_family()
    if FAMILIES[family].block_layers:
        return _kohya_transformer_tensors(source, FAMILIES[family], rank, dtype)
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


def _kohya_transformer_tensors(
    source: DeltaSet, family: Family, rank: int | None, dtype: torch.dtype | None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`kohya_tensors` of a transformer; readers take each layer's own alpha."""
    tensors: dict[str, torch.Tensor] = {}
    layers = joined(low_rank(source, rank), family.name, publisher=True)
    for name, delta in layers.items():
        path = publisher_name(family, name.partition(".")[2])
        stem = "lora_unet_" + path.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = delta.down.contiguous()
        tensors[f"{stem}.lora_up.weight"] = delta.up.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(delta.rank))
    metadata = {"ss_network_module": "networks.lora"} | _publisher_metadata(layers, family)
    return stored(tensors, dtype, source.dtype), metadata
