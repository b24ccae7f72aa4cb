"""Nothing outside data/ and outputs/ is listed, served or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusekrona.common.errors import UserError
from diffusekrona.ui.places import (
    Workspace,
    adapter_files,
    inside,
    run_folders,
    safe_name,
    served,
    subjects,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "work"
    (root / "data/dog/input").mkdir(parents=True)
    (root / "outputs/dog/run").mkdir(parents=True)
    (root / "outputs/dog/run/run.yaml").write_text("seed: 1\n")
    (root / "outputs/dog/run/adapter.safetensors").write_bytes(b"x")
    (root / "data/dog/input/0.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/run.yaml").write_text("seed: 1\n")
    return Workspace(root)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "data/../../secret.png", "/etc/hostname", "data/dog/../../../secret.png",
     "outputs/../secret.png", "data/\0.png", "", ".", "secret.png", "outputs/dog/run/.lock"],
)  # fmt: skip
def test_paths_that_lead_out_are_not_served(workspace: Workspace, name: str) -> None:
    assert served(workspace, name) is None


def test_links_that_lead_out_are_neither_served_nor_listed(workspace: Workspace) -> None:
    secrets = workspace.root.parent
    (workspace.data / "dog/input/link.png").symlink_to(secrets / "secret.png")
    (workspace.data / "linked").symlink_to(secrets / "secrets")
    (workspace.outputs / "linked").symlink_to(secrets / "secrets")
    (workspace.outputs / "loop").symlink_to(workspace.outputs / "loop")
    (workspace.outputs / "dog/link.safetensors").symlink_to(secrets / "secret.png")
    for name in ("data/dog/input/link.png", "outputs/linked/run.yaml", "outputs/loop/x.png"):
        assert served(workspace, name) is None
    assert subjects(workspace) == ["dog"]
    assert run_folders(workspace) == [workspace.outputs / "dog/run"]
    assert adapter_files(workspace) == ["outputs/dog/run/adapter.safetensors"]
    with pytest.raises(UserError):
        inside(workspace, "outputs/linked/new", ("outputs",))


def test_what_belongs_to_the_page_is_served(workspace: Workspace) -> None:
    assert served(workspace, "data/dog/input/0.png") == workspace.data / "dog/input/0.png"
    (workspace.outputs / "state.pt").write_bytes(b"pickle")
    assert served(workspace, "outputs/state.pt") is None


def test_a_missing_folder_is_an_empty_one(tmp_path: Path) -> None:
    empty = Workspace(tmp_path / "nowhere")
    assert subjects(empty) == run_folders(empty) == adapter_files(empty) == []


@pytest.mark.parametrize("text", ["../../x", "a/b", "<b>Dog</b>", "..dog", "Mein Hund"])
def test_names_are_made_safe(text: str) -> None:
    name = safe_name(text)
    assert name and not set(name) & set("/\\.<> ")
    with pytest.raises(UserError):
        safe_name("../..")
