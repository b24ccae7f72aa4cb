"""Files and folders in data/ and outputs/ that cannot be read: said in words, and nothing hangs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.ui import jobs, runs, tools_tab, train_form, uploads, watch_tab
from diffusekrona.ui.places import Workspace, adapter_files, run_folders, subjects, unreadable

FILES = ("run.yaml", "train_log.jsonl", "run.json", "log.txt", "adapter.safetensors", "README.md")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    pictures = tmp_path / "data/dog/input"
    pictures.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(pictures / "a.png")
    os.mkfifo(pictures / "a.txt")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "gone.png").symlink_to("/nowhere")
    (pictures / "folder.png").mkdir()
    (tmp_path / "data/gone").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "data/pipe")
    for kind in ("pipes", "folders", "links"):
        folder = tmp_path / "outputs/dog" / kind
        folder.mkdir(parents=True)
        for name in FILES:
            if kind == "pipes":
                os.mkfifo(folder / name)
            elif kind == "folders":
                (folder / name).mkdir()
            else:
                (folder / name).symlink_to("/nowhere")
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


def test_odd_files_are_left_out_or_named(workspace: Workspace) -> None:
    assert subjects(workspace) == ["dog"] and run_folders(workspace)
    assert uploads.captions(workspace, "dog") == [("a.png", "")]
    for kind in ("pipes", "folders", "links"):
        folder = workspace.outputs / "dog" / kind
        assert runs.log_tail(folder) == "" and runs.log_lines(folder / "train_log.jsonl") == []
        assert runs.read_run(workspace, folder).state in ("new", "stopped", "failed")
        assert "no such report" in tools_tab.report_view(workspace, f"outputs/dog/{kind}/README.md")
        with pytest.raises(UserError, match="is not running"):
            jobs.stop(workspace, folder)


@pytest.fixture
def closed(workspace: Workspace) -> Iterator[Workspace]:
    folders = [workspace.data / "shut", workspace.outputs / "shut"]
    for folder in folders:
        folder.mkdir()
        folder.chmod(0)
    if os.access(folders[0], os.R_OK):
        pytest.skip("root may read everything")
    yield workspace
    for folder in folders:
        folder.chmod(0o700)


def test_folders_that_may_not_be_read(closed: Workspace) -> None:
    assert subjects(closed) == ["dog"] and run_folders(closed) and adapter_files(closed)
    assert train_form.next_name(closed, "shut", "krona") == "outputs/shut/krona-1"
    assert not jobs.is_locked(closed.outputs / "shut/run")
    for read in (uploads.captions, uploads.masks):
        with pytest.raises(UserError, match="data/shut/input cannot be read: Permission denied"):
            read(closed, "shut")
    with pytest.raises(UserError, match="data/shut/input cannot be read: Permission denied"):
        jobs.check_pictures_there(closed, Path("data/shut/input"))
    for room in (closed.data, closed.outputs):
        room.chmod(0)
        try:
            line = f"{room.name}/ cannot be read: Permission denied."
            assert unreadable(closed, room.name) == line
            if room == closed.data:
                with pytest.raises(UserError, match=line):
                    uploads.add_pictures(closed, "dog", [])
            else:
                assert line in watch_tab._watched(closed, ["outputs/dog/pipes"])[0]
        finally:
            room.chmod(0o700)


def test_pictures_that_are_not_there(workspace: Workspace) -> None:
    (workspace.data / "empty/input").mkdir(parents=True)
    for name, words in (("gone", "is not there"), ("empty/input", "is empty")):
        with pytest.raises(UserError, match=f"data/{name} {words}: drop pictures"):
            jobs.check_pictures_there(workspace, Path("data") / name)
    jobs.check_pictures_there(workspace, Path("data/dog/input"))
    assert unreadable(Workspace(workspace.root / "nowhere"), "data") == ""
