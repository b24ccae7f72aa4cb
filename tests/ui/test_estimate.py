"""What the page says of a run before it is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusekrona.common.errors import UserError
from diffusekrona.ui.estimate import duration, estimate_of
from diffusekrona.ui.places import Workspace

VALUES = {
    "pretrained_model_name_or_path": "pocket",
    "instance_data_dir": Path("data/dog/input"),
    "output_dir": Path("outputs/dog/next"),
    "max_train_steps": 100,
}


def test_size_memory_and_the_time_that_a_run_like_it_took(tmp_path: Path) -> None:
    run = tmp_path / "outputs/dog/run"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("pretrained_model_name_or_path: pocket\n")
    (run / "run.json").write_text(json.dumps({"steps": 10, "seconds_training": 20.0}))
    facts = dict(estimate_of(Workspace(tmp_path), VALUES))
    assert "parameters" in facts["Adapter"] and facts["Memory"].startswith("about ")
    assert facts["Time"] == "3 min 20 s, as outputs/dog/run took"
    other = dict(estimate_of(Workspace(tmp_path), {**VALUES, "train_batch_size": 2}))
    assert "Time" not in other


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a1=7"):
        estimate_of(Workspace(tmp_path), {**VALUES, "a1": 7})


def test_durations() -> None:
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
