"""Early stopping by the choice among the checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_scorers import save_clip, save_dino

from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import build
from diffusekrona.evaluation.choice_settings import ChooseSettings
from diffusekrona.train_dreambooth import main
from diffusekrona.training import early_stop_by_scores as by_scores
from diffusekrona.training.choosing import choose_candidate


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos; scoring is by tiny models, and the first checkpoint is always the best one."""
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        noise = random.integers(0, 255, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("{subject} in the snow\n")
    given = {
        "weights": (1.0,), "prompts": str(tmp_path / "prompts.txt"), "seeds": (0, 7),
        "num_inference_steps": 2, "clip": str(save_clip(tmp_path / "clip")),
        "dino": str(save_dino(tmp_path / "dino")),
    }  # fmt: skip

    def first_is_best(settings: Any, state: Any, with_result: bool) -> Any:
        report = choose_candidate(settings, state, with_result)
        return report and SimpleNamespace(chosen=report.rows[0], rows=report.rows)

    monkeypatch.setattr(
        by_scores, "choose_settings", lambda run: build(ChooseSettings, {"run": run, **given})
    )
    monkeypatch.setattr(by_scores, "choose_candidate", first_is_best)
    return tmp_path / "photos"


def run(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    flags = [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog", "--output_dir", str(out), "--a2", "16", "--cpu",
        "--max_train_steps", "6", "--report_to", "none", "--learning_rate", "1e-2",
        "--checkpointing_steps", "1", "--early_stop", "2", "--early_stop_by", "scores", *more,
    ]  # fmt: skip
    assert main(flags) == 0
    return load_file(out / "adapter.safetensors")


def test_it_ends_with_the_best_checkpoint_and_a_kill_changes_nothing(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch
) -> None:
    result = run(tiny_sd1, pictures, tmp_path / "1")
    first = load_file(tmp_path / "1/checkpoint-1/adapter.safetensors")
    assert all(torch.equal(result[key], first[key]) for key in first)
    assert read_adapter(tmp_path / "1/adapter.safetensors").metadata["steps"] == "1"
    record = json.loads((tmp_path / "1/run.json").read_text())
    assert (record["steps"], record["stopped_early"], record["kept_step"]) == (3, True, 1)
    scored = sorted(path.name for path in (tmp_path / "1/choice/scores").glob("step-*.json"))
    assert scored == ["step-1-at-1.json", "step-2-at-1.json", "step-3-at-1.json"]

    shutil.copytree(tmp_path / "1", tmp_path / "killed")
    for name in ("adapter.safetensors", "run.json"):
        (tmp_path / "killed" / name).unlink()
    again = run(tiny_sd1, pictures, tmp_path / "killed", "--resume_from_checkpoint", "latest")
    assert all(torch.equal(result[key], again[key]) for key in result)

    # Drawing and scoring leave training alone.
    three = load_file(tmp_path / "1/checkpoint-3/training_state.safetensors")
    flags = ("--overwrite_output_dir", "--early_stop", "9", "--max_train_steps", "3")
    run(tiny_sd1, pictures, tmp_path / "killed", *flags, "--early_stop_by", "loss",
        "--validation_loss_steps", "3")  # fmt: skip
    plain = load_file(tmp_path / "killed/checkpoint-3/training_state.safetensors")
    assert all(torch.equal(three[key], plain[key]) for key in three)


def test_what_cannot_be_scored_is_refused_before_training(tiny_sd1, pictures, tmp_path) -> None:
    with pytest.raises(UserError, match="--identifier and --class_word"):
        run(tiny_sd1, pictures, tmp_path / "1", "--instance_prompt", "dog")
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_the_last_step_ends_the_run_without_a_choice(tiny_sd1, pictures, tmp_path: Path) -> None:
    """Its result is that of the last step, whatever is chosen."""
    result = run(tiny_sd1, pictures, tmp_path / "1", "--max_train_steps", "2")
    last = load_file(tmp_path / "1/checkpoint-2/adapter.safetensors")
    assert all(torch.equal(result[key], last[key]) for key in last)
    scored = sorted(path.name for path in (tmp_path / "1/choice/scores").glob("step-*.json"))
    assert scored == ["step-1-at-1.json"]
