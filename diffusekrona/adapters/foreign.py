"""KronA adapters that PEFT or diffusers saved, brought into the layout of our own file.

PEFT        adapter_model.safetensors, keys `base_model.model.<path>.krona_a`, with
            adapter_config.json beside it; of several models one folder each (unet/, …)
diffusers   `unet.save_lora_adapter`, keys `<path>.krona_a`; `pipe.save_lora_weights`, keys
            `unet.<path>.krona_a`; the config in the metadata entry `lora_adapter_metadata`
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..bases.components import is_text_encoder
from ..bases.families import denoiser_names
from ..common.errors import UserError
from ..common.json_files import parse_json, read_json
from ..common.tensor_files import read_tensors
from .layout import PEFT_WEIGHTS, metadata_head

PEFT_HEAD = "base_model.model."
CONFIG = "adapter_config.json"
_TEXT_ENCODER = ("text_model.", "encoder.layers.")  # how the layers of a lone one begin
Tensors = dict[str, torch.Tensor]


def in_own_layout(
    tensors: Tensors, metadata: Mapping[str, str], path: Path
) -> tuple[Tensors, dict[str, str]]:
    """The tensors under our names, and the metadata that our file has.

    Raises:
        UserError: it is not a KronA adapter, or its config is missing or damaged.
    """
    if not tensors or not all(key.endswith((".krona_a", ".krona_b")) for key in tensors):
        raise UserError(
            f"{path} is not a DiffuseKronA adapter file (its metadata does not say so): "
            "convert it with `python -m diffusekrona.convert`."
        )
    bare = {key.removeprefix(PEFT_HEAD): tensor for key, tensor in tensors.items()}
    configs = saved_configs(metadata, path)
    if not configs and (path.parent / CONFIG).is_file():
        configs = {"": read_json(path.parent / CONFIG, dict[str, Any])}
    if not configs:
        raise UserError(
            f"{path} is a KronA adapter without its config: put the {CONFIG} that was saved with "
            "it beside it."
        )
    lone = configs.pop("", None)
    if lone is not None:
        is_text = next(iter(bare)).startswith(_TEXT_ENCODER)
        component = "text_encoder" if is_text else denoiser_names()[0]
        configs = {component: lone}
        bare = {f"{component}.{key}": tensor for key, tensor in bare.items()}
    return bare, metadata_head("krona", configs)


def component_folders(path: Path) -> dict[str, Path]:
    """Component to its PEFT folder in `path`, such as `unet/` and `text_encoder/`; the denoiser
    first."""
    folders = sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
    denoisers = {f.name: f for f in folders if f.name in denoiser_names()}
    return denoisers | {f.name: f for f in folders if is_text_encoder(f.name)}


def read_component_folders(folders: Mapping[str, Path]) -> tuple[Tensors, dict[str, str]]:
    """The tensors under our names, and the metadata that our file has. Raises UserError."""
    tensors: Tensors = {}
    configs: dict[str, Any] = {}
    own: dict[str, str] = {}
    for component, folder in folders.items():
        path = folder / PEFT_WEIGHTS
        part, own = in_own_layout(*read_tensors(path), path)
        (configs[component],) = json.loads(own["config"]).values()
        tensors |= {f"{component}.{key.partition('.')[2]}": part[key] for key in part}
    return tensors, {**own, "config": json.dumps(configs)}


def saved_configs(metadata: Mapping[str, str], where: Path | str) -> dict[str, dict[str, Any]]:
    """diffusers' `lora_adapter_metadata` by component ("" for a lone model's). Raises UserError."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        flat = parse_json(text, dict[str, Any])
    except ValueError as error:
        raise UserError(f"{where}: lora_adapter_metadata is damaged ({error}).") from error
    configs: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in flat.items():
        component, _, field = key.rpartition(".")
        if component in ("", *denoiser_names()) or is_text_encoder(component):
            configs[component][field] = value
    return dict(configs)
