"""Adapter, training and resume on a GPU. All are skipped where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from diffusekrona import KronAConfig
from diffusekrona.krona import KronALinear
from diffusekrona.sampling.pipeline import generate, load_pipeline, place
from diffusekrona.train_dreambooth import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACCURACY = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DOG = Path(__file__).resolve().parents[2] / "data" / "dog" / "input"


def layer(dtype: torch.dtype, a1: int = 4, a2: int = 64) -> KronALinear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(640, 1280).requires_grad_(False).to("cuda", dtype)
    krona = KronALinear(linear, "default", KronAConfig(a1=a1, a2=a2, init_weights="both"), a1, a2)
    for factor in (krona.krona_a, krona.krona_b):  # as large as the base's part of the result
        factor["default"].data *= 8
    return krona


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", [(4, 64), (64, 8), (16, 16)])
def test_forward_and_gradients_are_those_of_the_formed_product(dtype, pair) -> None:
    krona = layer(dtype, *pair)
    x = torch.randn(2, 77, 640, device="cuda", dtype=dtype, requires_grad=True)
    y = krona(x)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()

    base = krona.get_base_layer()
    a, b = (f["default"].detach().double() for f in (krona.krona_a, krona.krona_b))
    a.requires_grad_(), b.requires_grad_()
    x64 = x.detach().double().requires_grad_()
    y64 = x64 @ (base.weight.double() + torch.kron(a, b)).T + base.bias.double()
    (y64 * weight.double()).sum().backward()
    pairs = {
        "output": (y, y64),
        "input": (x.grad, x64.grad),
        "A": (krona.krona_a["default"].grad, a.grad),
        "B": (krona.krona_b["default"].grad, b.grad),
    }
    for name, (have, want) in pairs.items():
        error = float((have - want).detach().abs().max() / want.detach().abs().max())
        assert error < ACCURACY[dtype], f"{name}: {error}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_unmerging_gives_the_exact_weight_back(dtype) -> None:
    krona = layer(dtype)
    weight = krona.get_base_layer().weight
    before = weight.clone()
    x = torch.randn(3, 640, device="cuda", dtype=dtype)
    with torch.no_grad():
        live = krona(x)
        krona.merge()
        assert not torch.equal(krona.get_base_layer().weight, before)
        merged = krona(x)
    assert float((merged - live).abs().max() / live.abs().max()) < ACCURACY[dtype]
    krona.unmerge()
    assert torch.equal(krona.get_base_layer().weight, before)


def test_the_adapter_never_waits_for_the_gpu() -> None:
    krona = layer(torch.bfloat16)
    x = torch.randn(2, 77, 640, device="cuda", dtype=torch.bfloat16)
    krona(x).sum().backward()  # the first call sets up cuBLAS
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        krona(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(out: Path, *more: str) -> dict[str, torch.Tensor]:
    flags = ["--pretrained_model_name_or_path", "pocket", "--instance_data_dir", str(DOG)]
    flags += ["--instance_prompt", "a sks dog", "--output_dir", str(out), "--report_to", "none"]
    flags += ["--max_train_steps", "6", "--no_latents_cache", *more]
    assert main(flags) == 0
    return load_file(out / "adapter.safetensors")


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_training_moves_every_factor_and_stays_finite(tmp_path: Path, precision) -> None:
    tensors = train(tmp_path, "--mixed_precision", precision)
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert all(t.abs().max() > 0 for key, t in tensors.items() if ".krona_b" in key)
    lines = (tmp_path / "train_log.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["loss"] < 10 for line in lines)


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    more = ("--mixed_precision", "bf16", "--checkpointing_steps", "3", "--gradient_checkpointing")
    more += ("--use_ema",)
    whole = train(tmp_path, *more)
    (tmp_path / "adapter.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = train(tmp_path, *more, "--resume_from_checkpoint", "latest")
    for name, tensor in whole.items():  # a GPU's sums are not the same twice
        torch.testing.assert_close(resumed[name], tensor, atol=2e-4, rtol=0)


def test_a_pipeline_offloaded_block_by_block_draws_the_same_picture(tmp_path: Path) -> None:
    base = tiny_models.save_pipeline(tmp_path, "z-image")
    pictures = []
    for low_vram in (False, True):
        pipeline = load_pipeline(str(base))
        place(pipeline, "cuda", low_vram)
        (picture,) = generate(pipeline, ["a dog"], [0], steps=3, guidance=3.0, size=(32, 32))
        pictures.append(np.asarray(picture, dtype=float))
    assert abs(pictures[0] - pictures[1]).max() <= 1
