"""Uploads are checked as pictures before they lie in data/."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.data.masks import find_mask
from diffusekrona.ui import uploads
from diffusekrona.ui.places import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "work/data").mkdir(parents=True)
    return Workspace(tmp_path / "work")


def picture(path: Path) -> Path:
    Image.new("RGB", (16, 16), "red").save(path)
    return path


def test_pictures_are_added_under_safe_names(workspace: Workspace, tmp_path: Path) -> None:
    first = picture(tmp_path / "My Dog (1).PNG")
    assert uploads.add_pictures(workspace, "../../My Dog", [first, first]) == ([], [])
    folder = workspace.data / "my-dog/input"
    assert sorted(p.name for p in folder.iterdir()) == ["my-dog-1-2.png", "my-dog-1.png"]


def test_a_mask_stays_its_pictures(workspace: Workspace, tmp_path: Path) -> None:
    files = [picture(tmp_path / "My Dog.png"), picture(tmp_path / "My Dog.mask.png")]
    assert uploads.add_pictures(workspace, "dog", files) == ([], [])
    assert uploads.captions(workspace, "dog") == [("my-dog.png", "")]
    assert uploads.masks(workspace, "dog") == {"my-dog": "my-dog.mask.png"}


@pytest.mark.parametrize("name", ["My Dog.mask.png", "My Dog-masklabel.png"])
def test_a_newer_mask_takes_the_place_of_the_old_one(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    files = [picture(tmp_path / "My Dog.png"), picture(tmp_path / "My Dog.mask.png")]
    uploads.add_pictures(workspace, "dog", files)
    folder = workspace.data / "dog/input"
    old = (folder / "my-dog.mask.png").read_bytes()
    assert uploads.add_pictures(workspace, "dog", files[1:]) == ([], [])  # the same again
    new = tmp_path / name
    Image.new("L", (16, 16), "white").save(new)
    (line,) = uploads.add_pictures(workspace, "dog", [new])[1]
    aside = folder / "my-dog.mask.png.set-aside"
    assert aside.name in line and aside.read_bytes() == old
    used = find_mask(folder / "my-dog.png")
    assert used is not None and used.read_bytes() == new.read_bytes()
    assert uploads.captions(workspace, "dog") == [("my-dog.png", "")]


def test_what_is_not_a_picture_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<script>alert(1)</script>")
    script = tmp_path / "x.svg"
    script.write_text("<svg onload='alert(1)'/>")
    lines, _ = uploads.add_pictures(workspace, "dog", [bad, script])
    assert len(lines) == 2 and not list(workspace.data.rglob("*.*"))
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)
    (line,), _ = uploads.add_pictures(workspace, "dog", [picture(tmp_path / "large.png")])
    assert "larger" in line and not list(workspace.data.rglob("*.png"))


def test_captions_lie_beside_their_pictures(workspace: Workspace, tmp_path: Path) -> None:
    uploads.add_pictures(workspace, "dog", [picture(tmp_path / "a.png")])
    uploads.save_captions(workspace, "dog", [("a.png", " a <b>dog</b>\n here ")])
    assert uploads.captions(workspace, "dog") == [("a.png", "a <b>dog</b> here")]
    uploads.save_captions(workspace, "dog", [("a.png", "")])
    assert not (workspace.data / "dog/input/a.txt").exists()
    assert uploads.captions(workspace, "dog") == [("a.png", "")]
    assert uploads.captions(workspace, "new") == []


def test_captions_are_written_nowhere_else(workspace: Workspace, tmp_path: Path) -> None:
    uploads.add_pictures(workspace, "dog", [picture(tmp_path / "a.png")])
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (workspace.data / "dog/input/a.txt").symlink_to(outside)
    for name in ("../../x.png", "b.png", "a.png"):
        with pytest.raises(UserError):
            uploads.save_captions(workspace, "dog", [(name, "text")])
    with pytest.raises(UserError):
        uploads.picture_folder(workspace, "../../..")
    assert outside.read_text() == "mine"
