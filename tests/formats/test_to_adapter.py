"""Other programs' adapters as ours: the same delta W."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.adapters.file import read_adapter, write_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.formats.to_adapter import read_as_adapter

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"


def test_ranks_that_differ_become_one(tmp_path: Path) -> None:
    tensors = {}
    for name, rank in (("q", 2), ("k", 4)):
        tensors[f"unet.{LAYER}{name}.lora_A.weight"] = torch.randn(rank, 64)
        tensors[f"unet.{LAYER}{name}.lora_B.weight"] = torch.randn(64, rank)
    save_file(tensors, tmp_path / "foreign.safetensors")
    write_adapter(read_as_adapter(tmp_path / "foreign.safetensors"), tmp_path / "own.safetensors")
    own = read_adapter(tmp_path / "own.safetensors")
    assert own.method.name == "lora" and own.configs["unet"].r == 4
    for name in "qk":
        down, up = (own.tensors[f"{LAYER}{name}.lora_{side}.weight"] for side in "AB")
        wanted = (
            tensors[f"unet.{LAYER}{name}.lora_B.weight"]
            @ tensors[f"unet.{LAYER}{name}.lora_A.weight"]
        )
        torch.testing.assert_close(up @ down, wanted)


def test_lokr_stays_a_kronecker_product(tmp_path: Path) -> None:
    stem = "lora_unet_" + (LAYER + "q").replace(".", "_")
    a, b = torch.randn(4, 8), torch.randn(16, 8)
    tensors = {f"{stem}.lokr_w1": a, f"{stem}.lokr_w2": b, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "lokr.safetensors")
    own = read_as_adapter(tmp_path / "lokr.safetensors")
    assert own.method.name == "krona"
    found = torch.kron(own.tensors[f"{LAYER}q.krona_a"], own.tensors[f"{LAYER}q.krona_b"])
    torch.testing.assert_close(found, torch.kron(a, b))


def test_how_the_base_is_read_and_drawn_stays_in_the_file(tmp_path: Path) -> None:
    notes = {
        "base_model": "base.safetensors", "base_sha256": "0" * 64, "single_file_config": "configs",
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": "true",
    }  # fmt: skip
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=8, target_modules=["to_q"]))
    tiny_models.random_factors(unet)
    path = save_adapter(unet, tmp_path / "a.safetensors", metadata=notes)
    convert(path, tmp_path / "b.safetensors", "krona")
    assert notes.items() <= read_adapter(tmp_path / "b.safetensors").metadata.items()


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError):
        read_as_adapter(tmp_path / "x.safetensors")
