"""Optimizers by name: each learns, and resumes exactly from its saved state; rates of A and B."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from diffusekrona.common.errors import UserError
from diffusekrona.krona import KronAConfig
from diffusekrona.krona.layer import KronALinear
from diffusekrona.train_dreambooth import main
from diffusekrona.training import optimizer as optimizer_module
from diffusekrona.training.optimizer import make_optimizer, set_mode, stepped
from diffusekrona.training.optimizer_records import OPTIMIZERS
from diffusekrona.training.settings import OptimisationSettings
from diffusekrona.training.state_file import load_state, save_state
from diffusekrona.training.training_state import _check_optimizer


def adapted(terms: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layer = KronALinear(nn.Linear(16, 8), "default", KronAConfig(terms=terms), 2, 4)
    layer.base_layer.requires_grad_(False)
    return layer


def settings(**values) -> OptimisationSettings:
    return OptimisationSettings(**{"learning_rate": 1e-2, **values})


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(32, 16)
        loss = ((layer(x) - x @ torch.linspace(-1, 1, 128).view(16, 8)) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].of_library])
def test_each_learns_and_resumes_exactly(name: str, terms: int, tmp_path: Path) -> None:
    whole = adapted(terms)
    optimizer = make_optimizer(settings(optimizer=name), {"unet": whole}, 1)
    losses = train(whole, optimizer, range(12))
    assert losses[-1] < losses[0]
    first = adapted(terms)
    optimizer = make_optimizer(settings(optimizer=name), {"unet": first}, 1)
    train(first, optimizer, range(5))
    save_state(optimizer.state_dict(), tmp_path / "state.safetensors")
    second = adapted(terms)
    second.load_state_dict(first.state_dict())
    optimizer = make_optimizer(settings(optimizer=name), {"unet": second}, 1)
    saved = load_state(tmp_path / "state.safetensors")
    _check_optimizer(saved, SimpleNamespace(**vars(optimizer), optimizer=optimizer))
    optimizer.load_state_dict(saved)
    train(second, optimizer, range(5, 12))
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_take_the_memory_that_is_estimated(name: str) -> None:
    record = OPTIMIZERS[name]
    if record.package:
        pytest.importorskip(record.package.replace("-", "_"))
    layer = nn.Linear(128, 128, bias=False)
    optimizer = make_optimizer(settings(optimizer=name), {"unet": layer}, 1)
    layer.weight.grad = torch.randn(128, 128)
    optimizer.step()
    state = {k: v for k, v in optimizer.state[layer.weight].items() if torch.is_tensor(v)}
    # Left out are single numbers, and what all parameters of an 8-bit optimizer share.
    taken = sum(v.nbytes for k, v in state.items() if v.numel() > 1 and "qmap" not in k)
    most = record.state_bytes(128 * 128)
    if name in ("adafactor", "came"):  # a moment in bf16, and others of rows and columns alone
        assert most / 3 < taken <= most
    else:
        assert taken == most


@pytest.mark.parametrize("name", [n for n, record in OPTIMIZERS.items() if not record.finds_rate])
def test_the_learning_rate_counts(name: str) -> None:
    """Adafactor's own default does not read it."""
    if package := OPTIMIZERS[name].package:
        pytest.importorskip(package.replace("-", "_"))
    moved = []
    for rate in (1e-4, 1e-2):
        layer = adapted()
        optimizer = make_optimizer(settings(optimizer=name, learning_rate=rate), {"unet": layer}, 1)
        before = [p.detach().clone() for p in layer.parameters() if p.requires_grad]
        train(layer, optimizer, range(8))
        after = [p.detach() for p in layer.parameters() if p.requires_grad]
        moved.append(sum((a - b).norm().item() for a, b in zip(after, before, strict=True)))
    assert 0 < moved[0] < moved[1] / 4


def test_schedule_free_weights_are_an_average_at_the_end() -> None:
    layer = adapted()
    optimizer = make_optimizer(settings(optimizer="schedulefreeadamw"), {"unet": layer}, 1)
    train(layer, optimizer, range(8))
    before = layer.krona_b["default"].detach().clone()
    set_mode(optimizer, training=False)
    assert not torch.equal(before, layer.krona_b["default"])
    set_mode(optimizer, training=True)
    torch.testing.assert_close(before, layer.krona_b["default"])


@pytest.mark.parametrize("overflow", [True, False])
def test_an_overflow_is_noticed_by_the_loss_scale(overflow: bool) -> None:
    """With fused AdamW accelerate reports no skipped step (torch's kernel skips it)."""
    scale = [1024.0]

    def step() -> None:
        scale[0] = 512.0 if overflow else scale[0]

    accelerator = SimpleNamespace(
        scaler=SimpleNamespace(get_scale=lambda: scale[0]),
        sync_gradients=True,
        optimizer_step_was_skipped=False,
    )
    assert stepped(accelerator, SimpleNamespace(step=step)) is not overflow


def test_b_has_its_own_rate() -> None:
    layer = adapted()
    plain = make_optimizer(settings(), {"unet": layer}, 1)
    assert [group["lr"] for group in plain.param_groups] == [1e-2]
    optimizer = make_optimizer(settings(lr_ratio=4.0, adam_weight_decay=0.0), {"unet": layer}, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 4e-2])
    for p in layer.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    a, b = (layer.krona_a["default"].detach().clone(), layer.krona_b["default"].detach().clone())
    optimizer.step()  # Adam's first step is as long as the rate
    assert (a - layer.krona_a["default"]).mean().item() == pytest.approx(1e-2, rel=1e-3)
    assert (b - layer.krona_b["default"]).mean().item() == pytest.approx(4e-2, rel=1e-3)
    with pytest.raises(UserError, match="--lr_ratio"):
        make_optimizer(settings(optimizer="prodigy", lr_ratio=2.0), {"unet": layer}, 1)


@pytest.mark.parametrize(
    "name, argument, says",
    [
        ("lion", "betas", "NAME=VALUE"),
        ("lion", "betas=import os", "NAME=VALUE"),
        ("lion", "betes=(0.9,0.9)", "did you mean betas"),
        ("lion", "betas=(2,3)", "--optimizer lion"),
        ("adamw", "betas=(0.9,0.9)", "--adam_"),
    ],
)
def test_arguments_that_cannot_work(name: str, argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_optimizer(settings(optimizer=name, optimizer_args=(argument,)), {"a": adapted()}, 1)


def test_an_8_bit_optimizer_that_could_not_be_resumed_is_refused(monkeypatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(optimizer_module, "is_bitsandbytes_version", lambda *_: False)
    with pytest.raises(UserError, match=r"needs bitsandbytes 0\.49\.2 or newer"):
        make_optimizer(settings(optimizer="adamw8bit"), {"unet": adapted()}, 1)


def test_arguments_reach_the_optimizer() -> None:
    chosen = settings(optimizer="lion", optimizer_args=("betas=(0.5, 0.6)",))
    optimizer = make_optimizer(chosen, {"unet": adapted()}, 1)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize(
    "more",
    [
        "--optimizer schedulefreeadamw --lr_ratio 4 --adapter_dropout 0.3 --loss_type huber",
        "--optimizer muon --loss_type log_cosh --debiased_weighting --lr_scheduler polynomial "
        "--max_relative_norm 0.01",
        "--optimizer came --adapter_type lora --adapter_dropout 0.2",
    ],
)
def test_a_run_that_resumes_is_one_that_never_stopped(tiny_sd1, tmp_path: Path, more: str) -> None:
    (data := tmp_path / "data").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (16, 16), "red").save(data / f"{name}.png")

    def run(out: str, steps: int, *flags: str) -> None:
        own = [
            "--pretrained_model_name_or_path", str(tiny_sd1), "--instance_data_dir", str(data),
            "--instance_prompt", "a dog", "--output_dir", str(tmp_path / out), "--a2", "16",
            "--max_train_steps", str(steps), "--resolution", "16", "--report_to", "none", "--cpu",
        ]  # fmt: skip
        assert main([*own, *more.split(), *flags]) == 0

    run("whole", 6)
    if "polynomial" in more:  # the schedule depends on the number of steps
        run("half", 6, "--checkpointing_steps", "3")
        run("half", 6, "--resume_from_checkpoint", str(tmp_path / "half" / "checkpoint-3"))
    else:
        run("half", 3, "--checkpointing_steps", "3")
        run("half", 6, "--resume_from_checkpoint", "latest")
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)
