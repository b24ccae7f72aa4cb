"""LoRA files: delta W = scale * up @ down, under every name that trainers give the two.

    kohya            <stem>.lora_down.weight, .lora_up.weight, .alpha (scale = alpha / rank)
    PEFT, diffusers  <path>.lora_A.weight, .lora_B.weight (scale 1, or by metadata)
    older diffusers  <path>.processor.to_q_lora.down.weight; .lora.down.weight;
                     .lora_linear_layer.down.weight; .lora_layer.down.weight

diffusers writes ranks and alphas into the metadata entry `lora_adapter_metadata`; so do we, since
releases before it took one alpha for all layers, wrong for layers of several ranks.

Source: diffusers `loaders/lora_pipeline.py`, `utils/state_dict_utils.py`; kohya-ss/sd-scripts
`networks/lora.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from ..adapters.deltas import Delta, LowRankDelta, to_low_rank, truncate
from ..adapters.methods import valid_scale
from ..common.errors import UserError
from ..common.tensor_files import read_tensors, stored
from .delta_set import DeltaSet, Hints, find_family, named_layers
from .layer_names import is_convolution, kernel_of, kohya_stem
from .metadata import metadata_for, names_in_files

# Group 1 is the stem's end that belongs to the module's name, group 2 says which factor.
_FACTOR = re.compile(
    r"(?P<stem>.+?)(?:\.|_)(?:lora_|lora\.|lora_linear_layer\.|lora_layer\.)"
    r"(?P<which>down|up|A|B)(?:\.(?!weight)\w+)?\.weight"
)
_DOWN = {"down", "A"}
_SCALE_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def is_lora_key(key: str) -> bool:
    return _FACTOR.fullmatch(key) is not None


def group(
    tensors: Mapping[str, torch.Tensor], where: Path | str
) -> dict[str, dict[str, torch.Tensor]]:
    """Keys to stem to {"up", "down", "alpha"}; refuses whatever else a file holds.

    Raises:
        UserError: a key that is no part of a LoRA, or a factor without its partner.
    """
    stems: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    keys: dict[tuple[str, str], str] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found:
            stem, part = found["stem"], "down" if found["which"] in _DOWN else "up"
        elif key.endswith(".alpha"):
            stem = re.sub(r"(_|\.)lora(_linear_layer|_layer)?$", "", key.removesuffix(".alpha"))
            part = "alpha"
        elif "dora_scale" in key or "magnitude" in key:
            raise UserError(
                f"{where}: {key} is a DoRA magnitude, which rescales the base's own weights: "
                "no delta of factors can hold it."
            )
        else:
            raise UserError(f"{where}: {key} is no part of a LoRA.")
        if part in stems[stem]:
            raise UserError(f"{where}: {key} and {keys[stem, part]} are the same factor twice.")
        stems[stem][part], keys[stem, part] = tensor, key
    for stem, parts in stems.items():
        for part, other in (("up", "down"), ("down", "up")):
            if part not in parts:
                have = keys.get((stem, other)) or keys[stem, "alpha"]
                raise UserError(f"{where} holds {have} without its {part} factor.")
    return dict(stems)


def read(path: Path, hints: Hints) -> DeltaSet:
    """A LoRA file of any of the programs. Raises UserError."""
    tensors, metadata = read_tensors(path)
    return from_tensors(tensors, metadata, path, hints)


def from_tensors(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    where: Path | str,
    hints: Hints,
    title: str = "LoRA",
) -> DeltaSet:
    """`read` for tensors in memory."""
    stems = group(tensors, where)
    names, per_block = named_layers(list(stems), where, metadata, hints)
    config = _saved_config(metadata, where)
    layers: dict[str, Delta] = {}
    for stem, parts in stems.items():
        up, down = parts["up"], parts["down"]
        _check(stem, up, down, where)
        scale = _scale(stem, parts, config, where)
        delta = LowRankDelta(up.float().flatten(1) * scale, down.float().flatten(1))
        layers[names[stem]] = LowRankDelta(delta.up, delta.down, tuple(down.shape[2:]))
    dtypes = Counter(t.dtype for t in tensors.values() if t.dim() > 1)
    return DeltaSet(
        layers,
        title,
        find_family(layers, list(stems), where, metadata, hints),
        dict(metadata),
        per_block,
        dtypes.most_common(1)[0][0],
    )


def _check(stem: str, up: torch.Tensor, down: torch.Tensor, where: Path | str) -> None:
    whole = up.dim() in (2, 4) and down.dim() == up.dim() and up.numel() and down.numel()
    if not whole or not up.is_floating_point() or tuple(up.shape[2:]) not in ((), (1, 1)):
        raise UserError(
            f"{where}: the factors of {stem}, {tuple(up.shape)} and {tuple(down.shape)}, "
            "are no LoRA."
        )
    if up.shape[1] != down.shape[0]:
        raise UserError(
            f"{where}: the factors of {stem} differ in rank: {up.shape[1]} and {down.shape[0]}."
        )


def _scale(
    stem: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: Path | str
) -> float:
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise UserError(f"{where}: {stem}.alpha is no single number.")
        return float(parts["alpha"]) / rank
    component = stem.partition(".")[0]
    own = config.get(component if component in config else "")
    if not own:
        return 1.0
    path = stem.removeprefix(component + ".")
    alphas, ranks = own.get("alpha_pattern") or {}, own.get("rank_pattern") or {}
    try:
        alpha = alphas.get(get_pattern_key(alphas, path), own.get("lora_alpha", rank))
        rank = ranks.get(get_pattern_key(ranks, path), own.get("r", rank))
        return valid_scale(alpha / (rank**0.5 if own.get("use_rslora") else rank), where)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise UserError(f"{where}: lora_adapter_metadata is damaged ({error}).") from error


def _saved_config(metadata: Mapping[str, str], where: Path | str) -> dict[str, dict[str, Any]]:
    """diffusers' `lora_adapter_metadata`, {"unet.r": 4, …}, by component ("" where unnamed)."""
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        by_component: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, value in flat.items():
            component, _, field = key.rpartition(".")
            if field in (*_SCALE_FIELDS, "alpha"):
                by_component[component][field] = value
    except (ValueError, AttributeError) as error:
        raise UserError(f"{where}: lora_adapter_metadata is damaged ({error}).") from error
    return dict(by_component)


def low_rank(source: DeltaSet, rank: int | None) -> dict[str, LowRankDelta]:
    """The source's layers as LoRA: exact, or of at most `rank`. Raises UserError (rank < 1)."""
    if rank is not None and rank < 1:
        raise UserError(f"--rank must be at least 1, not {rank}.")
    layers = {}
    for name, delta in source.layers.items():
        low = to_low_rank(delta) if rank is None else truncate(delta, rank)
        layers[name] = low
    return layers


def _shaped(name: str, delta: LowRankDelta, linear: bool) -> tuple[torch.Tensor, torch.Tensor]:
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
    known = names_in_files(source.family) if source.family else None
    linear = known.linear_projection if known else True
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for name, delta in low_rank(source, rank).items():
        up, down = _shaped(name, delta, linear)
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
        up, down = _shaped(name, delta, known.linear_projection)
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.lora_up.weight"] = up * (delta.rank / alpha)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    metadata = metadata_for(family, title, "lora", source.metadata)
    metadata |= {
        "ss_network_dim": str(int(alpha)),
        "ss_network_alpha": str(alpha),
        "layers_per_block": str(source.layers_per_block),
    }
    return stored(tensors, dtype, source.dtype), metadata
