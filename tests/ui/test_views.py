"""Whatever users and files say reaches the page escaped."""

from __future__ import annotations

import json
from pathlib import Path

from diffusekrona.ui.estimate import duration
from diffusekrona.ui.places import Workspace
from diffusekrona.ui.runs import Run, curves_of, log_lines, log_tail, read_run
from diffusekrona.ui.views import curve, say, view

HOSTILE = "<img src=x onerror=alert(1)>{{constructor}}${alert(1)}"


def is_harmless(text: str) -> bool:
    return "<img src=x" not in text and "{{" not in text and "${" not in text


def test_texts_are_escaped() -> None:
    assert is_harmless(say(mistakes=[HOSTILE], facts=[(HOSTILE, HOSTILE)], note=HOSTILE))
    run = Run(
        HOSTILE, Path(), "failed", error=HOSTILE, curves={HOSTILE: [(1, 1.0), (2, 2.0)]},
        pictures=((1, f'outputs/"{HOSTILE}.png'),), photo=HOSTILE, memory=HOSTILE,
    )  # fmt: skip
    assert is_harmless(view("watch", runs=[run], curve=curve, duration=duration, most=3))
    assert is_harmless(view("picture", names=[HOSTILE]))


def test_a_damaged_run_is_shown_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "outputs/dog"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("seed: [")
    (folder / "run.json").write_text("{")
    line = '{"step": 1, "loss": 0.5, "lr": 0.1, "seconds": 0.5}\n'
    odd = ["[" * 5000, '{"step": 9e999}', '{"step": 1, "loss": ' + "9" * 400 + ', "lr": "x"}']
    (folder / "train_log.jsonl").write_text(line + "\n".join([*odd, '{"step": 2, "lo']))
    (folder / "log.txt").write_bytes(b"train: 1/9 [\rtrain: 2/9 [\nerror: no space left\n")
    run = read_run(Workspace(tmp_path), folder)
    assert (run.state, run.step, run.steps, run.error) == ("failed", 1, 9, "error: no space left")
    assert run.curves == {"loss": [(1, 0.5)], "lr": [(1, 0.1)]} and not run.turned
    assert log_tail(folder).splitlines()[0] == "train: 2/9 ["
    assert curves_of(log_lines(tmp_path / "nowhere")) == {}


def test_the_validation_loss_is_shown_with_the_step_where_it_turned(tmp_path: Path) -> None:
    folder = tmp_path / "outputs/dog"
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "loss": loss, "timesteps": [1.0], "losses": [loss], "pictures": "held out"}
        for step, loss in ((0, 0.3), (10, 0.2), (20, 0.25))
    ]
    (folder / "validation_loss.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step"')
    run = read_run(Workspace(tmp_path), folder)
    assert run.curves["validation loss"] == [(0, 0.3), (10, 0.2), (20, 0.25)]
    text = view("watch", runs=[run], curve=curve, duration=duration, most=3)
    assert "validation loss: 0.25" in text and "lowest 0.2000 at step 10, where it turned" in text
    (folder / "validation_loss.jsonl").write_text(json.dumps(lines[0]))
    text = view("watch", runs=[read_run(Workspace(tmp_path), folder)], curve=curve,
                duration=duration, most=3)  # fmt: skip
    assert "validation loss: 0.3" in text and "polyline" not in text and "lowest" not in text


def test_a_killed_run_says_so_and_where_it_continues(tmp_path: Path) -> None:
    folder = tmp_path / "outputs/dog"
    folder.mkdir(parents=True)
    (folder / "train_log.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    (folder / "log.txt").write_text("train: 3/9 [")
    run = read_run(Workspace(tmp_path), folder)
    assert run.state == "stopped" and "killed" in run.error and "starts again" in run.error
    (folder / "checkpoint-2").mkdir()
    assert "checkpoint of step 2" in read_run(Workspace(tmp_path), folder).error
    (folder / "log.txt").write_text("train: 3/9 [\nstopped at step 3, saved in checkpoint-3\n")
    assert not read_run(Workspace(tmp_path), folder).error
