"""PEFT's folder: `adapter_config.json` beside `adapter_model.safetensors`.

Keys are `base_model.model.<module path>.<factor>`. A folder adapts one model; an adapter of
several has one folder per component (`unet/`, `text_encoder/` …). A KronA folder loads with
`PeftModel.from_pretrained` once `diffusekrona.krona` is imported, which enters the method into
PEFT's tables; a LoRA folder loads in stock PEFT.

Source: huggingface/peft `peft_model.py`, `utils/save_and_load.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from ..adapters.file import checked_adapter
from ..adapters.foreign import CONFIG, PEFT_HEAD, component_folders
from ..adapters.krona_method import KRONA
from ..adapters.layout import PEFT_WEIGHTS
from ..adapters.lora_method import lora_of
from ..bases.components import denoiser_name
from ..bases.families import denoiser_names
from ..bases.names import without_text_model
from ..common.errors import UserError, shortened
from ..common.json_files import read_json
from ..common.tensor_files import entries_of, read_tensors, refuse_pickle, stored, write_entries
from . import adapter_layers
from .delta_set import DeltaSet, Hints, by_component, find_family, layers_from_metadata
from .destination import MARK
from .krona_file import component_deltas, to_adapter
from .layer_names import layer_name
from .layer_parts import part_of
from .lora import low_rank


def folders_of(path: Path) -> dict[str, Path]:
    """Component to its PEFT folder; "" for the folder of one model, or for a file in it."""
    folder = path.parent if path.is_file() else path
    return {"": folder} if (folder / CONFIG).is_file() else component_folders(path)


def read(path: Path, hints: Hints) -> DeltaSet:
    """A PEFT folder of KronA, LoRA, LoHa or LoKr, or the weights' file in it. Raises UserError."""
    folders = folders_of(path)
    if not folders:
        raise UserError(
            f"{path} has no {CONFIG} beside it, which says how its factors are scaled: add it."
        )
    parts: list[tuple[str, str, DeltaSet]] = []
    metadata: dict[str, str] = {}
    for component, inner in folders.items():
        weights = path if path.is_file() else inner / PEFT_WEIGHTS
        if not weights.is_file() and (inner / "adapter_model.bin").is_file():
            refuse_pickle(inner / "adapter_model.bin")
        config = read_json(inner / CONFIG, dict[str, Any])
        tensors, noted = read_tensors(weights)
        kind = shortened(config.get("peft_type")).upper()
        parts.append((component, kind, _component(kind, config, tensors, inner / CONFIG, hints)))
        metadata |= noted
        if isinstance(config.get("base_model_name_or_path"), str):
            metadata.setdefault("base_model", config["base_model_name_or_path"])
    whole = DeltaSet(
        {},
        f"PEFT folder ({', '.join(sorted({kind for _, kind, _ in parts}))})",
        metadata=metadata,
        dtype=parts[0][2].dtype,
        layers_per_block=hints.layers_per_block or layers_from_metadata(metadata),
    )
    for component, _, own in parts:
        whole.layers |= {_placed(name, component): delta for name, delta in own.layers.items()}
        whole.need_base |= {_placed(name, component): d for name, d in own.need_base.items()}
        whole.vectors |= {_placed(name, component): v for name, v in own.vectors.items()}
        whole.notes += own.notes
    everything = whole.layers | whole.need_base
    whole.family = find_family(everything, [], path, metadata, hints)
    return whole


def _placed(name: str, component: str) -> str:
    return f"{component}.{name.partition('.')[2]}" if component else name


def _component(
    kind: str,
    config: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    where: Path,
    hints: Hints,
) -> DeltaSet:
    """One model's adapter, under the names of its layers."""
    bare = {key.removeprefix(PEFT_HEAD): tensor for key, tensor in tensors.items()}
    bare, notes = _without_whole_weights(bare, config, where, hints)
    if kind == "KRONA":
        found = _kronecker(bare, config, where)
        found.notes += notes
        return found
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise UserError(
            f"{where}: PEFT method {kind} is not supported: merge it with PEFT's merge_and_unload "
            "and convert the whole model that this gives."
        )
    if kind == "LORA":
        config.setdefault("lora_alpha", 8)  # PEFT's default
    elif not {"r", "alpha"} <= config.keys():
        raise UserError(f"{where} has a damaged config: r or alpha is missing.")
    found = adapter_layers.from_tensors(bare, {}, where, hints, {"": config})
    found.notes += notes
    return found


def _without_whole_weights(
    tensors: dict[str, torch.Tensor], config: Mapping[str, Any], where: Path, hints: Hints
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The factors alone, where PEFT trained weights of the base itself too, and a note on these.

    Raises:
        UserError: there are such weights, and the user did not choose to leave them out.
    """
    fields = [f for f in ("modules_to_save", "bias") if config.get(f) not in (None, [], "none")]
    whole = [k for k in tensors if part_of(k) is None and KRONA.layer_of(k) is None]
    if not fields or not whole:
        return tensors, []
    what = f"{len(whole)} weights of the base model itself ({fields[0]}), the first {whole[0]}"
    if not hints.skip_unsupported:
        raise UserError(
            f"{where}: the adapter also holds {what}: merge it with PEFT's merge_and_unload and "
            "convert the whole model that this gives, or leave them out with --skip_unsupported."
        )
    return {k: t for k, t in tensors.items() if k not in set(whole)}, [f"left out {what}"]


def _kronecker(
    tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], where: Path
) -> DeltaSet:
    component = denoiser_names()[0]  # which one it is, the layers' names show
    adapter = checked_adapter(KRONA, tensors, {component: values}, {}, where)
    found = component_deltas(adapter.tensors, adapter.configs[component], where)
    dtypes = Counter(t.dtype for t in tensors.values())
    layers = {layer_name(path): delta for path, delta in found.items()}
    return DeltaSet(layers, "KronA", dtype=dtypes.most_common(1)[0][0])


def write_krona(source: DeltaSet, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A KronA folder of Kronecker deltas. Raises UserError."""
    adapter = to_adapter(_as_installed(source), dtype)
    parts = {
        component: (config, adapter.component_tensors(component))
        for component, config in adapter.configs.items()
    }
    _write(parts, source, folder)


def write_lora(
    source: DeltaSet, folder: Path, rank: int | None = None, dtype: torch.dtype | None = None
) -> None:
    """A LoRA folder for stock PEFT: exact, or of at most `rank`. Raises UserError."""
    layers = low_rank(_as_installed(source), rank)
    parts: dict[str, tuple[PeftConfig, dict[str, torch.Tensor]]] = {}
    for component, own in by_component(layers).items():
        config, tensors = lora_of(own)
        parts[component] = (config, stored(tensors, dtype, source.dtype))
    _write(parts, source, folder)


def _write(
    parts: Mapping[str, tuple[PeftConfig, Mapping[str, torch.Tensor]]],
    source: DeltaSet,
    folder: Path,
) -> None:
    for component, (config, tensors) in parts.items():
        inner = folder if list(parts) == [denoiser_name(parts)] else folder / component
        inner.mkdir(exist_ok=True)
        named = {PEFT_HEAD + key: tensor for key, tensor in tensors.items()}
        config.base_model_name_or_path = source.metadata.get("base_model")
        config.inference_mode = True
        config.save_pretrained(str(inner))
        metadata = {"base_family": source.family} if source.family else {}
        metadata["layers_per_block"] = str(source.layers_per_block)
        write_entries(entries_of(named), inner / PEFT_WEIGHTS, metadata | MARK)


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


def _as_installed(source: DeltaSet) -> DeltaSet:
    """Layers as the installed transformers names them: CLIPTextModel has lost `text_model.`."""
    if _clip_is_wrapped():
        return source
    first = "text_encoder."
    bare = {
        first + without_text_model(name.removeprefix(first)) if name.startswith(first) else name: d
        for name, d in source.layers.items()
    }
    return replace(source, layers=bare)
