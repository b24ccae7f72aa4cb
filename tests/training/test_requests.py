"""Saving and drawing on request, by signals and by files."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusekrona.train_dreambooth import main
from diffusekrona.training.requests import DRAW_NOW, SAVE_NOW, ask, listening
from diffusekrona.training.stopping import Vote


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
def test_signals_and_files_ask_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with listening(tmp_path, True, can_draw=True) as requests:
        assert requests.take() == (False, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.take() == (True, False)
        os.kill(os.getpid(), signal.SIGUSR2)
        ask(tmp_path, SAVE_NOW)
        assert requests.take() == (True, True)
        assert requests.take() == (False, False)
        ask(tmp_path, DRAW_NOW)  # too late
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGUSR1) == before


def test_one_process_looks_and_nothing_is_drawn_without_prompts(tmp_path: Path, caplog) -> None:
    ask(tmp_path, DRAW_NOW)
    with listening(tmp_path, False, can_draw=True) as requests:
        assert requests.take() == (False, False)
    with listening(tmp_path, True, can_draw=False) as requests:
        assert requests.take() == (False, False)
    assert "no --validation_prompt" in caplog.text and not any(tmp_path.iterdir())


def test_of_several_processes_each_wish_is_counted_apart() -> None:
    """The answer is that of the step before."""
    accelerator = SimpleNamespace(
        num_processes=2,
        device="cpu",
        reduce=lambda flags, reduction: flags + torch.tensor([0.0, 1.0, 0.0]),
    )
    vote = Vote(accelerator)
    assert vote(True, False, False) == (False, False, False)
    assert vote(False, False, False) == (True, True, False)


def test_a_run_saves_and_draws_on_request_and_stays_the_same(tiny_sd1, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (48, 40), colour).save(tmp_path / "photos" / f"{colour}.png")

    def run(name: str) -> dict[str, torch.Tensor]:
        flags = [
            "--pretrained_model_name_or_path", str(tiny_sd1), "--instance_data_dir",
            str(tmp_path / "photos"), "--instance_prompt", "a sks dog", "--output_dir",
            str(tmp_path / name), "--a2", "16", "--cpu", "--max_train_steps", "3",
            "--validation_prompt", "a dog", "--validation_inference_steps", "1",
            "--num_validation_images", "1", "--report_to", "none",
        ]  # fmt: skip
        assert main(flags) == 0
        return load_file(tmp_path / name / "adapter.safetensors")

    whole = run("plain")
    (tmp_path / "asked").mkdir()
    ask(tmp_path / "asked", SAVE_NOW)
    ask(tmp_path / "asked", DRAW_NOW)
    asked = run("asked")
    assert all(torch.equal(whole[key], asked[key]) for key in whole)
    assert not list((tmp_path / "plain").glob("checkpoint-*"))
    assert (tmp_path / "asked/checkpoint-1/state.json").is_file()
    drawn = sorted(path.name for path in (tmp_path / "asked/validation").glob("step-*.png"))
    assert drawn == [f"step-{step:06d}-00.png" for step in (0, 1, 3)]
    assert not list((tmp_path / "asked").glob("*_now"))
