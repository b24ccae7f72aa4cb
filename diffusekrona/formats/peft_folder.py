"""PEFT's folder: `adapter_config.json` beside `adapter_model.safetensors`.

Keys are `base_model.model.<module path>.<factor>`. A folder adapts one model; an adapter of
several has a folder a component inside (`unet/`, `text_encoder/` …). A KronA folder loads with
`PeftModel.from_pretrained` once `diffusekrona.krona` is imported, which enters the method into
PEFT's tables; a LoRA folder loads in stock PEFT.

Source: huggingface/peft `peft_model.py`, `utils/save_and_load.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key

from ..adapters.deltas import Delta
from ..adapters.file import config_from_json
from ..adapters.methods import METHODS, Method, valid_scale
from ..common.errors import UserError
from ..common.tensor_files import entries_of, read_tensors, refuse_pickle, stored, write_entries
from . import lokr
from .delta_set import DeltaSet, Hints, find_family
from .destination import MARK
from .folders import read_json
from .krona_file import component_deltas, to_adapter
from .layer_names import layer_name
from .lora import low_rank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_HEAD = "base_model.model."


def component_folders(folder: Path) -> dict[str, Path]:
    """Component to its PEFT folder; "" for a folder of one model."""
    if (folder / CONFIG).is_file():
        return {"": folder}
    return {c: folder / c for c in COMPONENTS if (folder / c / CONFIG).is_file()}


def read(folder: Path, hints: Hints) -> DeltaSet:
    """A PEFT folder of KronA, LoRA or LoKr. Raises UserError."""
    layers: dict[str, Delta] = {}
    kinds: set[str] = set()
    dtypes: Counter[torch.dtype] = Counter()
    metadata: dict[str, str] = {}
    for component, inner in component_folders(folder).items():
        if not (inner / WEIGHTS).is_file() and (inner / "adapter_model.bin").is_file():
            refuse_pickle(inner / "adapter_model.bin")
        config = read_json(inner / CONFIG)
        tensors, noted = read_tensors(inner / WEIGHTS)
        kind = str(config.get("peft_type")).upper()
        kinds.add(kind)
        found = _deltas(kind, config, tensors, inner, hints)
        layers |= {_placed(name, component): delta for name, delta in found.items()}
        dtypes.update(t.dtype for t in tensors.values())
        metadata |= noted
        if isinstance(config.get("base_model_name_or_path"), str):
            metadata.setdefault("base_model", config["base_model_name_or_path"])
    return DeltaSet(
        layers,
        f"PEFT folder ({', '.join(sorted(kinds))})",
        find_family(layers, [], folder, metadata, hints),
        metadata,
        dtype=dtypes.most_common(1)[0][0],
    )


def _placed(name: str, component: str) -> str:
    return f"{component}.{name.partition('.')[2]}" if component else name


def _deltas(
    kind: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    where: Path,
    hints: Hints,
) -> dict[str, Delta]:
    bare = {key.removeprefix(_HEAD): tensor for key, tensor in tensors.items()}
    if kind == "LOKR":
        return lokr.from_tensors(bare, {}, where, hints, _lokr_scales(values, bare, where)).layers
    method = METHODS.get(kind.lower())
    if method is None:
        raise UserError(f"{where / CONFIG}: PEFT method {kind} is not supported.")
    try:
        config = config_from_json(method.name, values)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{where / CONFIG} is damaged ({error}).") from error
    _check_tensors(method, bare, where)
    found = component_deltas(bare, config, where)
    return {layer_name(path): delta for path, delta in found.items()}


def _check_tensors(method: Method, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    for key, tensor in tensors.items():
        found = method.layer_of(key)
        if found is None:
            raise UserError(f"{where}: {key} is not a {method.title} tensor.")
        for name in method.tensor_names:
            other = f"{found[0]}.{name}"
            if other not in tensors:
                raise UserError(f"{where} holds {key} without {other}.")
            shape, partner = tuple(tensor.shape), tuple(tensors[other].shape)
            if len(shape) not in (2, 3, 4) or not tensor.numel() or len(shape) != len(partner):
                raise UserError(f"{where}: {key} {shape} does not fit {other} {partner}.")
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {key} holds {tensor.dtype}, not floating-point numbers.")


def _lokr_scales(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], where: Path
) -> dict[str, float]:
    """PEFT's scale, alpha / r of every layer, whole factors or not."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    scales = {}
    try:
        for stem in {key.rpartition(".lokr_")[0] for key in tensors}:
            rank = ranks.get(get_pattern_key(ranks, stem), config.get("r"))
            alpha = alphas.get(get_pattern_key(alphas, stem), config.get("alpha"))
            scales[stem] = valid_scale(alpha / rank, where / CONFIG)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise UserError(f"{where / CONFIG} has no usable r and alpha ({error}).") from error
    return scales


def write_krona(source: DeltaSet, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A KronA folder of Kronecker deltas. Raises UserError."""
    adapter = to_adapter(source, dtype)
    parts = {
        component: (config, adapter.component_tensors(component))
        for component, config in adapter.configs.items()
    }
    _write(parts, source, folder)


def write_lora(
    source: DeltaSet, folder: Path, rank: int | None = None, dtype: torch.dtype | None = None
) -> None:
    """A LoRA folder for stock PEFT: exact, or of at most `rank`. Raises UserError."""
    layers = low_rank(source, rank)
    parts: dict[str, tuple[PeftConfig, dict[str, torch.Tensor]]] = {}
    for component in source.components():
        own = {n.partition(".")[2]: d for n, d in layers.items() if n.startswith(component + ".")}
        common = Counter(d.rank for d in own.values()).most_common(1)[0][0]
        pattern = {path: d.rank for path, d in own.items() if d.rank != common}
        config = LoraConfig(
            r=common,
            lora_alpha=common,
            rank_pattern=pattern,
            alpha_pattern=dict(pattern),
            target_modules=sorted(own),
        )
        tensors = {}
        for path, delta in own.items():
            if delta.kernel:
                raise UserError(f"{component}.{path} is a convolution: write --to lora instead.")
            tensors[f"{path}.lora_A.weight"] = delta.down.contiguous()
            tensors[f"{path}.lora_B.weight"] = delta.up.contiguous()
        parts[component] = (config, stored(tensors, dtype, source.dtype))
    _write(parts, source, folder)


def _write(
    parts: Mapping[str, tuple[PeftConfig, Mapping[str, torch.Tensor]]],
    source: DeltaSet,
    folder: Path,
) -> None:
    for component, (config, tensors) in parts.items():
        inner = folder if list(parts) == ["unet"] else folder / component
        inner.mkdir(exist_ok=True)
        named = {_HEAD + _installed(component, key): t for key, t in tensors.items()}
        config.target_modules = {_installed(component, p) for p in config.target_modules}
        for patterns in ("factor_pattern", "rank_pattern", "alpha_pattern"):
            old = getattr(config, patterns, {})
            setattr(config, patterns, {_installed(component, k): v for k, v in old.items()})
        config.base_model_name_or_path = source.metadata.get("base_model")
        config.inference_mode = True
        config.save_pretrained(inner)
        metadata = {"base_family": source.family} if source.family else {}
        metadata["layers_per_block"] = str(source.layers_per_block)
        write_entries(entries_of(named), inner / WEIGHTS, metadata | MARK)


@cache
def _clip_is_wrapped() -> bool:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=2,
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return hasattr(transformers.CLIPTextModel(config), "text_model")


def _installed(component: str, path: str) -> str:
    """A path as the installed transformers names it: CLIPTextModel has lost `text_model.`."""
    if component != "text_encoder" or _clip_is_wrapped():
        return path
    return path.removeprefix("text_model.").removeprefix(r"text_model\.")
