"""The sweep over learning rates: its curve, its rate, and what it leaves alone."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.train_dreambooth import main
from diffusekrona.training import lr_find
from diffusekrona.training.lr_find import Sweep, curve_in_lines, rate_at, smoothed, words_of


def test_rates_rise_by_the_same_factor() -> None:
    rates = [rate_at(step) for step in range(lr_find.STEPS)]
    assert math.isclose(rates[0], 1e-6) and math.isclose(rates[-1], 1)
    factors = [b / a for a, b in pairwise(rates)]
    assert max(factors) - min(factors) < 1e-9


def test_smoothing_is_an_unbiased_geometric_mean() -> None:
    assert smoothed([0.5] * 5) == pytest.approx([0.5] * 5)
    weights = [0.9**2, 0.9, 1]
    wanted = math.exp(
        sum(w * math.log(x) for w, x in zip(weights, (1, 2, 4), strict=True)) / sum(weights)
    )
    assert smoothed([1, 2, 4])[-1] == pytest.approx(wanted)


def test_the_rate_is_a_tenth_of_the_lowest_points() -> None:
    found = Sweep([1e-3, 1e-2, 1e-1], [0.9, 0.5, 0.8])
    assert found.rate == 1e-3 and "--learning_rate 0.001" in words_of(found, 5e-3)
    flat = Sweep([1e-3, 1e-2], [1.0, 0.995])
    assert flat.rate is None and "did not fall" in words_of(flat, 5e-3)
    assert len(curve_in_lines(found)) == 2


def flags(base: Path, tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "photos").mkdir(exist_ok=True)
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (48, 40), colour).save(tmp_path / "photos" / f"{colour}.png")
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir",
        str(tmp_path / "photos"), "--instance_prompt", "a sks dog", "--output_dir",
        str(tmp_path / "run"), "--a2", "16", "--cpu", "--lr_find", *more,
    ]  # fmt: skip


def test_a_sweep_of_a_tiny_base_writes_one_chart(
    tiny_sd1, tmp_path: Path, capsys, monkeypatch
) -> None:
    """In the middle of a run's folder, which stays as it is; the same curve every time."""
    monkeypatch.setattr(lr_find, "STEPS", 20)
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "adapter.safetensors").write_bytes(b"mine")
    more = (
        "--train_batch_size", "2", "--gradient_accumulation_steps", "2",
        "--with_prior_preservation", "--class_data_dir", str(tmp_path / "class"),
        "--class_prompt", "a dog",
    )  # fmt: skip
    printed = []
    for _ in range(2):
        assert main(flags(tiny_sd1, tmp_path, *more)) == 0
        printed.append(capsys.readouterr().out)
        (run / "lr_find.png").unlink()
    assert printed[0] == printed[1] and "      1.0e-06   1.000 " in printed[0]
    assert "Begin with --learning_rate" in printed[0]
    assert sorted(path.name for path in run.iterdir()) == ["adapter.safetensors", "checkpoint-3"]
    assert (run / "adapter.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / "class").exists()


def test_batches_without_a_loss_are_left_out(tiny_sd1, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(lr_find, "STEPS", 12)
    argv = flags(tiny_sd1, tmp_path)
    data = tmp_path / "data.yaml"
    entries = "folders: [{folder: photos, weight: 0}, {folder: more, weight: %d}]"
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    data.write_text(entries % 1)
    assert main([*argv, "--instance_data_dir", str(data)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 2  # of 6 steps every fifth
    data.write_text(entries % 0)
    with pytest.raises(UserError, match="every loss is 0"):
        main([*argv, "--instance_data_dir", str(data)])


def test_the_norm_limit_holds_in_a_sweep(tiny_sd1, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(lr_find, "STEPS", 6)
    monkeypatch.setattr(lr_find, "HIGHEST", 100.0)
    assert main(flags(tiny_sd1, tmp_path, "--max_relative_norm", "1e-6")) == 0
    _, *curve, words, _ = capsys.readouterr().out.splitlines()
    assert "did not fall" in words
    assert [line.split()[1] for line in curve] == ["1.000"] * 2


def test_an_optimizer_without_a_rate_is_refused(tiny_sd1, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prodigy chooses its learning rate"):
        main(flags(tiny_sd1, tmp_path, "--optimizer", "prodigy", "--learning_rate", "1"))
    assert not (tmp_path / "run").exists()
