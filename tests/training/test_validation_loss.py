"""The validation loss: what it is of, what it leaves alone, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusekrona.bases.diffusion import DiffusionObjective
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import content_key
from diffusekrona.data.examples import Example
from diffusekrona.data.holdout import split_held_out
from diffusekrona.data.settings import DataSettings
from diffusekrona.train_dreambooth import main
from diffusekrona.training.validation_loss import (
    LossLine,
    fixed_timesteps,
    in_words,
    read_losses,
    turning_point,
)

HOLDOUT = ("--holdout", "1", "--validation_loss_steps", "2")


def run(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    flags = [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog", "--output_dir", str(out), "--a2", "16", "--cpu",
        "--max_train_steps", "5", "--checkpointing_steps", "3", "--report_to", "none", *more,
    ]  # fmt: skip
    assert main(flags) == 0
    return load_file(out / "adapter.safetensors")


def curve(out: Path) -> list[LossLine]:
    return read_losses(out / "validation_loss.jsonl")


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
def test_training_with_it_is_training_without_it(request, base, pictures, tmp_path: Path) -> None:
    folder = request.getfixturevalue(base)
    without = run(folder, pictures, tmp_path / "1")
    measured = run(folder, pictures, tmp_path / "2", "--validation_loss_steps", "2")
    assert without.keys() == measured.keys()
    assert all(torch.equal(without[k], measured[k]) for k in without)
    logs = [(tmp_path / n / "train_log.jsonl").read_text().splitlines() for n in "12"]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert not curve(tmp_path / "1")
    lines = curve(tmp_path / "2")
    assert [line.step for line in lines] == [0, 2, 4, 5]
    assert {line.pictures for line in lines} == {"training"}
    assert all(len(line.losses) == len(line.timesteps) == 4 for line in lines)


def test_a_resumed_run_leaves_the_same_curve(tiny_sd1, pictures, tmp_path: Path) -> None:
    whole = run(tiny_sd1, pictures, tmp_path / "1", *HOLDOUT)
    run(tiny_sd1, pictures, tmp_path / "2", *HOLDOUT)
    (tmp_path / "2" / "adapter.safetensors").unlink()
    with open(tmp_path / "2" / "validation_loss.jsonl", "a") as file:
        file.write('{"step": 17, "lo')
    again = run(tiny_sd1, pictures, tmp_path / "2", *HOLDOUT, "--resume_from_checkpoint", "latest")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert curve(tmp_path / "1") == curve(tmp_path / "2")
    assert {line.pictures for line in curve(tmp_path / "1")} == {"held out"}


def test_losses_of_other_pictures_are_not_compared(tiny_sd1, pictures, tmp_path, caplog) -> None:
    """A resumed run may measure on other pictures: its curve, and --early_stop, start again."""
    folders = [tmp_path / colour for colour in ("black", "white")]
    for folder in folders:
        folder.mkdir()
        Image.new("RGB", (48, 40), folder.name).save(folder / "a.png")
    out, more = tmp_path / "out", ("--validation_loss_steps", "1", "--holdout_data_dir")
    run(tiny_sd1, pictures, out, *more, str(folders[0]))
    (out / "adapter.safetensors").unlink()
    run(tiny_sd1, pictures, out, *more, str(folders[1]), "--resume_from_checkpoint", "latest")
    assert [line.step for line in curve(out)] == [3, 4, 5]
    assert "measured on other pictures" in caplog.text


def test_it_falls_where_the_step_losses_are_noise(tiny_sd1, pictures, tmp_path: Path) -> None:
    more = ("--max_train_steps", "20", "--learning_rate", "1e-2", "--validation_loss_steps", "5")
    run(tiny_sd1, pictures, tmp_path, *more, "--train_batch_size", "4")
    losses = [line.loss for line in curve(tmp_path)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]


def test_held_out_pictures_are_not_trained_on(tiny_sd1, pictures, tmp_path: Path) -> None:
    """The run is that of a folder in which the picture never was."""
    examples = [Example(path, ("a sks dog",)) for path in sorted(pictures.glob("*.png"))]
    data = DataSettings(instance_data_dir=pictures, holdout=1)
    trained, (held,) = split_held_out(examples, data, seed=0)
    (tmp_path / "rest").mkdir()
    for example in trained:
        (tmp_path / "rest" / example.path.name).write_bytes(example.path.read_bytes())
    one = run(tiny_sd1, pictures, tmp_path / "1", "--holdout", "1")
    two = run(tiny_sd1, tmp_path / "rest", tmp_path / "2")
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert held.path not in [e.path for e in trained]


def test_a_folder_of_held_out_pictures(pictures, tmp_path: Path) -> None:
    """Copies of them in the training folder are not trained on."""
    (tmp_path / "mine.png").write_bytes((pictures / "red.png").read_bytes())
    data = DataSettings(
        instance_data_dir=pictures, instance_prompt="a dog", holdout_data_dir=tmp_path
    )
    examples = [Example(path, ("a dog",)) for path in sorted(pictures.glob("*.png"))]
    trained, held = split_held_out(examples, data, 0)
    assert [e.path.name for e in trained] == ["blue.png", "green.png", "yellow.png"]
    assert [(e.path.name, e.captions) for e in held] == [("mine.png", ("a dog",))]


def test_what_is_held_out_follows_the_seed_and_the_content(pictures, tmp_path: Path) -> None:
    def held(folder: Path, seed: int, count: int = 1) -> list[str]:
        data = DataSettings(instance_data_dir=folder, holdout=count)
        examples = [Example(path, ("a dog",)) for path in sorted(folder.glob("*.png"))]
        trained, kept = split_held_out(examples, data, seed)
        keys = [content_key(example.path) for example in kept]
        assert not set(keys) & {content_key(example.path) for example in trained}
        return keys

    for number, path in enumerate(sorted(pictures.glob("*.png"), reverse=True)):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    assert held(pictures, 3) == held(tmp_path, 3)  # other names
    assert len({held(pictures, seed)[0] for seed in range(20)}) > 1
    for path in list(tmp_path.glob("*.png")):  # every picture twice
        (tmp_path / f"copy-{path.name}").write_bytes(path.read_bytes())
    assert held(tmp_path, 3, 2) == held(pictures, 3, 2)
    with pytest.raises(UserError, match="leaves none of the 8 pictures"):
        held(tmp_path, 0, 4)


def test_fixed_timesteps_stand_for_equal_parts_of_the_drawn_ones() -> None:
    from diffusers import DDPMScheduler

    found = fixed_timesteps(DiffusionObjective(DDPMScheduler()), (4, 8, 8))
    assert (found - torch.tensor([125, 375, 625, 875])).abs().max() < 25


def test_the_step_at_which_it_turns() -> None:
    def lines(*losses: float) -> list[LossLine]:
        return [LossLine(10 * n, x, [1.0], [x], "held out") for n, x in enumerate(losses)]

    assert turning_point([]) is None and turning_point(lines(3, 2, 1)) is None
    turn = turning_point(lines(3, 1, 2, 4))
    assert turn is not None and turn.step == 10
    assert "turned" in in_words(lines(3, 1, 2, 4)) and "lowest" in in_words(lines(3, 2, 1))
