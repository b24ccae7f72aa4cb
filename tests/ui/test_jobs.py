"""Runs are processes of their own: queued, stopped, the same as from a shell."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import wait_until

from diffusekrona import train_dreambooth
from diffusekrona.common.errors import UserError
from diffusekrona.common.tensor_files import read_tensors
from diffusekrona.ui import jobs
from diffusekrona.ui.places import Workspace
from diffusekrona.ui.runs import read_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "data/dog/input").mkdir(parents=True)
    (tmp_path / "outputs").mkdir()
    for name in ("00.png", "01.png"):
        (tmp_path / "data/dog/input" / name).write_bytes(
            (ROOT / "data/dog/input" / name).read_bytes()
        )
    return Workspace(tmp_path)


def values(name: str, **more: object) -> dict:
    return {
        "pretrained_model_name_or_path": "pocket",
        "instance_data_dir": Path("data/dog/input"),
        "instance_prompt": "a sks dog",
        "output_dir": Path("outputs") / name,
        "max_train_steps": 2,
        "report_to": "none",
        **more,
    }


@pytest.fixture
def sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that only sleep, in place of training."""
    monkeypatch.setattr(jobs, "_launch", sleep)


def sleep(workspace: Workspace, folder: Path, *more: str) -> None:
    turn = [sys.executable, "-m", "diffusekrona.ui.turn", str(jobs.queue(workspace)), str(folder)]
    program = f"open({str(folder / 'begun')!r}, 'w'); import time; time.sleep(600)"
    jobs.spawn(workspace, [*turn, sys.executable, "-c", program], folder / jobs.LOG)


def test_runs_wait_for_each_other(workspace: Workspace, sleeping: None) -> None:
    first = jobs.start(workspace, values("a"))
    wait_until((first / "begun").exists)
    second = jobs.start(workspace, values("b"))
    wait_until(lambda: jobs.ticket_of(workspace, second))
    waiting = read_run(workspace, second)
    assert (waiting.state, waiting.ahead) == ("waiting", workspace.relative(first))
    time.sleep(0.5)
    assert not (second / "begun").exists()
    with pytest.raises(UserError, match="running or waiting"):
        jobs.resume(workspace, second)
    jobs.stop(workspace, first)
    wait_until((second / "begun").exists)
    assert read_run(workspace, first).state == "new"
    jobs.stop(workspace, second)
    wait_until(lambda: jobs.process_of(workspace, second) is None)
    with pytest.raises(UserError, match="is not running"):
        jobs.stop(workspace, second)


def test_two_pages_cannot_start_the_same_run(workspace: Workspace, sleeping: None) -> None:
    folder = jobs.start(workspace, values("a"))
    before = (folder / "run.yaml").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        jobs.start(workspace, values("a", seed=3))
    assert (folder / "run.yaml").read_bytes() == before
    wait_until(lambda: jobs.process_of(workspace, folder))
    jobs.stop(workspace, folder)


@pytest.mark.parametrize(
    "bad",
    [{"output_dir": Path("../x")}, {"output_dir": Path("data/x")}, {"output_dir": Path("outputs")},
     {"instance_data_dir": Path("/etc")}, {"class_data_dir": Path("~/x")},
     {"init_from": Path("/etc/hostname")}],
)  # fmt: skip
def test_paths_outside_are_refused(workspace: Workspace, sleeping: None, bad: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        jobs.start(workspace, values("a") | bad)
    assert list(workspace.outputs.iterdir()) == []


def test_a_shells_run_is_found_by_its_lock(workspace: Workspace) -> None:
    folder = workspace.outputs / "shell"
    folder.mkdir()
    program = "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]);"
    program += "lock.acquire(); print('locked', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / ".lock")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    assert read_run(workspace, folder).state == "starting"
    assert jobs.process_of(workspace, folder) == process.pid
    jobs.save_now(workspace, folder)
    jobs.draw_now(workspace, folder)
    assert (folder / "save_now").exists() and (folder / "draw_now").exists()
    (folder / "run.yaml").write_text("instance_prompt: a sks dog\n")
    with pytest.raises(UserError, match="no validation prompt"):
        jobs.draw_now(workspace, folder)
    jobs.stop(workspace, folder)
    process.wait(20)
    assert not jobs.is_locked(folder)
    with pytest.raises(UserError, match="is not running"):
        jobs.save_now(workspace, folder)


@pytest.mark.slow
def test_a_run_of_the_page_equals_the_shells(workspace: Workspace) -> None:
    folder = jobs.start(workspace, values("page"))
    wait_until(lambda: read_run(workspace, folder).state in ("finished", "failed"))
    shell = workspace.outputs / "shell"
    words = [f"--{name}={value}" for name, value in values("shell").items()]
    with contextlib.chdir(workspace.root):
        assert train_dreambooth.main(words) == 0
    for run in (folder, shell):
        assert read_run(workspace, run).state == "finished"
    own, others = (read_tensors(run / "adapter.safetensors") for run in (folder, shell))
    assert own[1] == others[1] and own[0].keys() == others[0].keys()
    assert all(torch.equal(tensor, others[0][name]) for name, tensor in own[0].items())
    pages = (folder / "run.yaml").read_text().replace("outputs/page", "outputs/shell")
    assert pages == (shell / "run.yaml").read_text()
