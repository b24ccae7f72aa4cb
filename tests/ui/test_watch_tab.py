"""The buttons of the tab Watch, with several runs chosen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("gradio", reason="gradio is not installed")
from diffusekrona.ui.places import Workspace
from diffusekrona.ui.watch_tab import act

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
RUNS = ["outputs/done", "outputs/silent", "outputs/live"]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A run that has ended, and two under way, of which the first has no validation prompt."""
    for name in RUNS:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train_log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / RUNS[1] / "run.yaml").write_text("instance_prompt: a sks dog\n")
    with FileLock(tmp_path / RUNS[1] / ".lock"), FileLock(tmp_path / RUNS[2] / ".lock"):
        yield Workspace(tmp_path)


def test_a_button_is_for_the_runs_that_it_can_do_something_with(workspace: Workspace) -> None:
    said = act(workspace, "save-now", RUNS)
    assert "Asked to save" in said and "is not running" not in said
    there = [name for name in RUNS if (workspace.root / name / "save_now").exists()]
    assert there == RUNS[1:]
    assert "outputs/done is not running" in act(workspace, "save-now", RUNS[:1])
    assert "Choose a run first" in act(workspace, "save-now", [])


def test_a_run_that_refuses_does_not_keep_the_others(workspace: Workspace) -> None:
    said = act(workspace, "draw-now", RUNS)
    assert "outputs/silent has no validation prompt" in said and "Asked to draw" in said
    assert (workspace.root / RUNS[2] / "draw_now").exists()
