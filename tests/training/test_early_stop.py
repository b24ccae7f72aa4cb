"""Early stopping: when it ends a run, what it keeps, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from diffusekrona.adapters.file import read_adapter, save_adapter
from diffusekrona.adapters.layout import ADAPTER_FILE
from diffusekrona.common.errors import UserError
from diffusekrona.krona import KronAConfig
from diffusekrona.sampling.grids import read_recipe
from diffusekrona.train_dreambooth import main
from diffusekrona.training.early_stop import LOWEST, EarlyStopByLoss, lowest_of, should_stop
from diffusekrona.training.validation_loss import LossLine, read_losses

HIGH = ("--learning_rate", "0.3", "--validation_loss_steps", "1", "--checkpointing_steps", "1")


def run(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    flags = [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog", "--output_dir", str(out), "--a2", "16", "--cpu",
        "--max_train_steps", "12", "--report_to", "none", "--holdout", "1", *more,
    ]  # fmt: skip
    assert main(flags) == 0
    return load_file(out / "adapter.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def lines(*losses: float) -> list[LossLine]:
    return [LossLine(10 * n, x, [1.0], [x], "held out") for n, x in enumerate(losses)]


def test_when_it_stops() -> None:
    assert not should_stop([], 1) and lowest_of(lines(1)) is None
    assert not should_stop(lines(1, 2), 1)  # step 0 is before training
    assert not should_stop(lines(5, 3, 2), 1)
    assert should_stop(lines(5, 3, 4), 1) and not should_stop(lines(5, 3, 4), 2)
    assert should_stop(lines(5, 3, 3, 4), 2)
    lowest = lowest_of(lines(1, 3, 2, 4))
    assert lowest is not None and lowest.step == 20


def test_it_ends_with_the_lowest_and_a_kill_changes_nothing(
    tiny_sd1, pictures, tmp_path: Path, caplog
) -> None:
    more = (*HIGH, "--early_stop", "2")
    drawn = ("--validation_prompt", "a dog", "--num_validation_images", "1")
    drawn += ("--validation_inference_steps", "1")
    result = run(tiny_sd1, pictures, tmp_path / "1", *more, *drawn)
    curve = read_losses(tmp_path / "1/validation_loss.jsonl")
    lowest = lowest_of(curve)
    assert lowest is not None and curve[-1].step == lowest.step + 2 < 12
    assert same(result, load_file(tmp_path / f"1/checkpoint-{lowest.step}/adapter.safetensors"))
    metadata = read_adapter(tmp_path / "1/adapter.safetensors").metadata
    record = json.loads((tmp_path / "1/run.json").read_text())
    assert metadata["steps"] == str(lowest.step)
    assert (record["steps"], record["stopped_early"]) == (curve[-1].step, True)
    assert not (tmp_path / "1/lowest_loss.safetensors").exists()
    recipes = [read_recipe(path) for path in (tmp_path / "1/validation").glob("step-*.png")]
    assert {recipe["step"] for recipe in recipes if recipe} == {0, lowest.step}

    again = (*more, "--resume_from_checkpoint", "latest")
    caplog.set_level("INFO", "diffusekrona")
    run(tiny_sd1, pictures, tmp_path / "1", *again)
    assert "is trained already" in caplog.text

    # As a kill leaves it after the last checkpoint, or after the first: the rest is done again.
    for step in (curve[-1].step, 1):
        out = tmp_path / f"killed-{step}"
        shutil.copytree(tmp_path / "1", out)
        for name in ("adapter.safetensors", "run.json"):
            (out / name).unlink()
        for later in range(step + 1, 13):
            shutil.rmtree(out / f"checkpoint-{later}", ignore_errors=True)
        kept = tmp_path / f"1/checkpoint-{lowest.step}/adapter.safetensors"
        # Its metadata names the step, as that of the file which the run kept.
        adapter = read_adapter(kept)
        from diffusekrona.adapters.file import write_adapter

        adapter.metadata["steps"] = str(lowest.step)
        write_adapter(adapter, out / "lowest_loss.safetensors")
        assert same(run(tiny_sd1, pictures, out, *again), result)
        assert read_losses(out / "validation_loss.jsonl") == curve


@pytest.mark.parametrize("name", [LOWEST, ADAPTER_FILE])
def test_the_lowest_is_found_where_it_was_kept_or_in_the_result(tmp_path: Path, name: str) -> None:
    """The file that was kept is gone when a run that had ended is continued."""
    torch.manual_seed(0)
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    state = SimpleNamespace(models={"unet": unet}, adapter_name="default")
    losses = SimpleNamespace(
        every=10, accelerator=SimpleNamespace(is_main_process=True), lines=lines(5, 3, 4)
    )
    early = EarlyStopByLoss(1, losses, tmp_path, state, [])
    assert early.restore(20, ended=False) is None
    tiny_models.random_factors(unet, seed=1)
    lowest = save_adapter(unet, tmp_path / name, metadata={"steps": 10})
    tiny_models.random_factors(unet, seed=2)
    assert early.restore(20, ended=False) == 10
    assert same(load_file(save_adapter(unet, tmp_path / "restored.safetensors")), load_file(lowest))
    losses.lines = lines(5, 3, 2)  # the last step is the lowest: nothing is read
    assert early.restore(20, ended=False) == 20


@pytest.mark.parametrize("more", [("--use_ema",), ("--optimizer", "schedulefreeadamw")])
def test_keeping_the_lowest_leaves_training_alone(tiny_sd1, pictures, tmp_path: Path, more) -> None:
    flags = (*HIGH, "--max_train_steps", "3", *more)
    run(tiny_sd1, pictures, tmp_path / "1", *flags)
    run(tiny_sd1, pictures, tmp_path / "2", *flags, "--early_stop", "9")
    for step in (1, 2, 3):
        one, two = (tmp_path / n / f"checkpoint-{step}" for n in "12")
        name = "training_state.safetensors"
        assert same(load_file(one / name), load_file(two / name))
        name = "adapter.safetensors"
        assert same(load_file(one / name), load_file(two / name))


def test_what_is_measured_is_what_would_be_kept(tiny_sd1, pictures, tmp_path: Path) -> None:
    """With a moving average, the loss is that of the average."""
    flags = (*HIGH, "--max_train_steps", "3")
    run(tiny_sd1, pictures, tmp_path / "plain", *flags)
    run(tiny_sd1, pictures, tmp_path / "ema", *flags, "--use_ema")
    plain, average = (read_losses(tmp_path / n / "validation_loss.jsonl") for n in ("plain", "ema"))
    assert plain[0].losses == average[0].losses
    assert plain[-1].losses != average[-1].losses
    start = ("--init_from", str(tmp_path / "ema/adapter.safetensors"), "--max_train_steps", "1")
    run(tiny_sd1, pictures, tmp_path / "from", *flags, *start)
    again = read_losses(tmp_path / "from/validation_loss.jsonl")[0]
    assert again.losses == pytest.approx(average[-1].losses, rel=1e-5)


def test_it_needs_a_loss_to_follow(tiny_sd1, pictures, tmp_path: Path) -> None:
    for more in (("--holdout", "0"), ("--validation_loss_steps", "0")):
        with pytest.raises(UserError, match="--early_stop follows the validation loss"):
            run(tiny_sd1, pictures, tmp_path, "--early_stop", "2", *more)
