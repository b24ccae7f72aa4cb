"""What the page says of a run before it is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.training.memory import count
from diffusekrona.ui.estimate import duration, estimate_of
from diffusekrona.ui.places import Workspace

VALUES = {
    "pretrained_model_name_or_path": "pocket",
    "instance_data_dir": Path("data/dog/input"),
    "output_dir": Path("outputs/dog/next"),
    "max_train_steps": 100,
}


def test_size_memory_and_the_time_at_the_speed_of_a_run_like_it(tmp_path: Path) -> None:
    workspace, run = Workspace(tmp_path), tmp_path / "outputs/dog/run"

    def time_of(**more: object) -> str:
        return dict(estimate_of(workspace, {**VALUES, **more}))["Time"]

    assert time_of() == "known after the first steps of a run like this"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text(
        "pretrained_model_name_or_path: pocket\nadapter_type: krona\nresolution: 64\n"
        "train_batch_size: 1\ngradient_accumulation_steps: 1\n"
    )
    lines = ({"step": step, "loss": 1, "seconds": 3.0 * step} for step in (1, 2))
    (run / "train_log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert time_of() == "about 5 min 0 s, as fast as outputs/dog/run"  # while it runs
    (run / "run.json").write_text(json.dumps({"steps": 10, "seconds_training": 20.0}))
    facts = dict(estimate_of(workspace, VALUES))
    assert "parameters" in facts["Adapter"] and facts["Memory"].startswith("about ")
    assert facts["Time"] == "about 3 min 20 s, as fast as outputs/dog/run"
    assert time_of(train_batch_size=2).startswith("about 6 min 40 s")
    assert time_of(resolution=128).startswith("about 13 min 20 s")
    assert time_of(adapter_type="lora").startswith("known after")


def test_passes_over_the_pictures_are_counted_in_steps(tmp_path: Path) -> None:
    run = tmp_path / "outputs/dog/run"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("pretrained_model_name_or_path: pocket\nresolution: 64\n")
    (run / "run.json").write_text(json.dumps({"steps": 10, "seconds_training": 20.0}))
    photos = tmp_path / "photos"
    photos.mkdir()
    values = {
        **VALUES, "instance_data_dir": photos, "instance_prompt": "a", "num_train_epochs": 10,
    }  # fmt: skip
    del values["max_train_steps"]

    def time() -> str:
        return dict(estimate_of(Workspace(tmp_path), values))["Time"]

    assert time() == "known once the pictures are there"
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), colour).save(photos / f"{colour}.png")
    assert time().startswith("about 1 min 0 s")


def test_sizes_are_counted_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page asks at every edit of its form, and most of them change no size."""
    counted, real = [], count._count
    monkeypatch.setattr(count, "_count", lambda *args: counted.append(1) or real(*args))
    monkeypatch.setattr(count, "_counted", {})

    def memory_of(**more: object) -> str:
        return dict(estimate_of(Workspace(tmp_path), {**VALUES, **more}))["Memory"]

    assert memory_of() == memory_of(learning_rate=0.01, max_train_steps=5, seed=3)
    assert len(counted) == 1
    for more in ({"a2": 32}, {"adapter_type": "lora"}, {"train_batch_size": 64}):
        memory_of(**more)
    assert len(counted) == 4
    assert memory_of(train_batch_size=64) != memory_of() and len(counted) == 4


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a1=7"):
        estimate_of(Workspace(tmp_path), {**VALUES, "a1": 7})


def test_durations() -> None:
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
