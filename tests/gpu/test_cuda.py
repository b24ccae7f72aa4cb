"""Adapter, training and resume on a GPU. All are skipped where there is none."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import accelerate
import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from diffusekrona import KronAConfig
from diffusekrona.krona import KronALinear
from diffusekrona.sampling.pipeline import generate, load_pipeline, place
from diffusekrona.train_dreambooth import main
from diffusekrona.training import log
from diffusekrona.training import optimizer as optimizer_module

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
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


@pytest.fixture(params=[True, False], ids=["deterministic", "fast"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param, warn_only=True)
    yield request.param
    torch.use_deterministic_algorithms(False)


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, deterministic: bool) -> None:
    more = ("--mixed_precision", "bf16", "--checkpointing_steps", "3", "--gradient_checkpointing")
    more += ("--use_ema",)
    whole = train(tmp_path, *more)
    (tmp_path / "adapter.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = train(tmp_path, *more, "--resume_from_checkpoint", "latest")
    before, after = (torch.cat([t[n].flatten() for n in whole]) for t in (whole, resumed))
    off = float((after - before).norm() / before.norm())
    if off:
        warnings.warn(f"{off:.2g} off the run that was not interrupted", stacklevel=1)
    # A GPU's sums are not the same twice, unless it is asked to.
    assert off < 0.02 and (off == 0 or not deterministic)


def test_no_step_waits_for_the_gpu(tmp_path: Path, monkeypatch) -> None:
    step = log.RunLog.step

    def watched(self, done: int, *loss) -> None:  # the first steps set up, the last one saves
        torch.cuda.set_sync_debug_mode("warn" if 2 <= done < 5 else "default")
        step(self, done, *loss)

    monkeypatch.setattr(log.RunLog, "step", watched)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, "--mixed_precision", "bf16")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert not waits


def test_a_step_that_overflows_leaves_the_factors_alone(tmp_path: Path, monkeypatch) -> None:
    clip, stepped = accelerate.Accelerator.clip_grad_norm_, optimizer_module.stepped
    moved: list[bool] = []

    def spoiled(self, parameters, *norm):
        if len(moved) == 3:
            parameters[0].grad.fill_(torch.inf)
        return clip(self, parameters, *norm)

    def watched(accelerator, optimizer) -> bool:
        group = optimizer.param_groups[0]["params"]
        before = [p.detach().clone() for p in group]
        moved.append(stepped(accelerator, optimizer))
        same = all(torch.equal(p, old) for p, old in zip(group, before, strict=True))
        assert same is not moved[-1]
        return moved[-1]

    monkeypatch.setattr(accelerate.Accelerator, "clip_grad_norm_", spoiled)
    monkeypatch.setattr(optimizer_module, "stepped", watched)
    tensors = train(tmp_path, "--mixed_precision", "fp16")
    assert moved[3] is False and moved[-1] is True
    assert all(torch.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_training_on_a_quantised_base(tmp_path: Path, kind: str) -> None:
    if kind != "fp8" and find_spec("bitsandbytes") is None:
        pytest.skip("no bitsandbytes")
    tensors = train(tmp_path, "--mixed_precision", "bf16", "--quantize_base", kind)
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_a_pipeline_offloaded_block_by_block_draws_the_same_picture(tmp_path: Path) -> None:
    base = tiny_models.save_pipeline(tmp_path, "z-image")
    pictures = []
    for low_vram in (False, True):
        pipeline = load_pipeline(str(base))
        place(pipeline, "cuda", low_vram)
        (picture,) = generate(pipeline, ["a dog"], [0], steps=3, guidance=3.0, size=(32, 32))
        pictures.append(np.asarray(picture, dtype=float))
    assert abs(pictures[0] - pictures[1]).max() <= 1
