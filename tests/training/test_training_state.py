"""Factors go back into the models that they are of, or the reason is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from diffusekrona.adapters.file import read_adapter, save_adapter
from diffusekrona.common.tensor_files import read_metadata
from diffusekrona.krona import KronAConfig
from diffusekrona.training.training_state import put_back


def encoder(seed: int) -> Any:
    torch.manual_seed(0)
    model = CLIPTextModel(tiny_models.text_config())
    model.add_adapter(KronAConfig(a1=4, a2=8, target_modules=["q_proj"]))
    tiny_models.random_factors(model, seed=seed)
    return model


def renamed(path: Path, old: str, new: str) -> Path:
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=read_metadata(path))
    return path


def test_names_of_another_transformers_are_understood_and_others_refused(tmp_path: Path) -> None:
    """CLIPTextModel has lost its inner `text_model`; PEFT ignores names that it does not know."""
    file = save_adapter({"text_encoder": encoder(1)}, tmp_path / "adapter.safetensors")
    has_inner = hasattr(CLIPTextModel(tiny_models.text_config()), "text_model")
    names = ("text_model.encoder.layers", "encoder.layers")
    renamed(file, *(names if has_inner else reversed(names)))
    model = encoder(2)
    state: Any = SimpleNamespace(models={"text_encoder": model}, adapter_name="default")
    put_back(state, read_adapter(file))
    found, wanted = (get_peft_model_state_dict(one) for one in (model, encoder(1)))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    renamed(file, "layers.0.", "layers.9.")
    before = {name: tensor.clone() for name, tensor in found.items()}
    with pytest.raises(ValueError, match=r"are of other layers, such as .*layers\.0"):
        put_back(state, read_adapter(file))
    after = get_peft_model_state_dict(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
