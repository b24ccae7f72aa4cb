"""A full disk is said in one line, loses nothing, and the page goes on once there is room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
from PIL import Image

from diffusekrona.common import files
from diffusekrona.common.errors import UserError
from diffusekrona.ui import checking, draw_form, drawing, jobs, tools, train_form, uploads
from diffusekrona.ui.places import Workspace

SAID = "no space left on the disk"


class Disk:
    """Has room, or has none: then no file can be written to its end."""

    full = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, flush = Disk(), files._flush

    def flush_or_not(file: Path) -> None:
        if disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(files, "_flush", flush_or_not)
    return disk


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "work/data").mkdir(parents=True)
    (tmp_path / "work/outputs").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Workspace(tmp_path / "work")


def all_files(workspace: Workspace) -> dict[str, bytes]:
    found = [path for path in workspace.root.rglob("*") if path.is_file()]
    return {workspace.relative(path): path.read_bytes() for path in found}


def refused(workspace: Workspace, disk: Disk, action: Callable[[], object]) -> None:
    """Nothing is left of the action; with room again it works."""
    before = all_files(workspace)
    disk.full = True
    with pytest.raises(UserError, match=SAID):
        action()
    assert all_files(workspace) == before
    disk.full = False
    action()
    assert all_files(workspace) != before


def test_uploads_and_captions(workspace: Workspace, disk: Disk, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    refused(workspace, disk, lambda: uploads.add_pictures(workspace, "dog", [picture]))
    uploads.save_captions(workspace, "dog", [("a.png", "old")])
    refused(workspace, disk, lambda: uploads.save_captions(workspace, "dog", [("a.png", "new")]))


def test_runs(workspace: Workspace, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a run that could not begin stays free."""
    monkeypatch.setattr(jobs, "_launch", lambda *_: None)
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": "pocket", "instance_data_dir": Path("data/dog/input"),
        "output_dir": Path("outputs/dog/krona-1"),
    }  # fmt: skip
    refused(workspace, disk, lambda: jobs.start(workspace, values))
    (workspace.data / "dog/input").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(workspace.data / "dog/input/a.png")
    typed = dict(zip(train_form.NAMES, train_form.first_values(workspace)[1:], strict=True))
    typed |= {"instance_data_dir": "data/dog/input", "output_dir": "outputs/dog/krona-2"}
    disk.full = True
    said, *_ = train_form.started(workspace, typed)
    assert SAID in said and not (workspace.outputs / "dog/krona-2").exists()


def test_pictures(workspace: Workspace, disk: Disk) -> None:
    """Of the base alone; the message is shown, and what was drawn before stays."""
    values = {"pretrained_model_name_or_path": "pocket", "prompt": ("a dog",)}
    settings = drawing.settings_from(workspace, {**values, "num_inference_steps": 1})
    refused(workspace, disk, lambda: drawing.draw(settings))
    disk.full = True
    given = ["", "", "", 1, 1, 1, [], [], [], False, "", False, ""]
    typed = {"pretrained_model_name_or_path": "pocket", "prompt": "a dog",
             "num_inference_steps": "1"}  # fmt: skip
    given += [typed.get(name, "") for name in draw_form.NAMES]
    *_, (said, _) = draw_form.drawn(workspace, given)
    assert SAID in said


def test_reports(
    workspace: Workspace, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    uploads.add_pictures(workspace, "dog", [picture])
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": "pocket", "instance_data_dir": Path("data/dog/input"),
        "output_dir": Path("outputs/x"),
    }  # fmt: skip
    refused(workspace, disk, lambda: checking.check_pictures(workspace, values))

    def no_room(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (workspace.outputs / "a").touch()
    monkeypatch.setattr(Path, "mkdir", no_room)
    with pytest.raises(UserError, match=SAID):
        tools.start(workspace, tools.TOOLS[-1], {"source": "outputs/a", "destination": "outputs/b"})
