"""Results under names that somebody's own file has: ours is replaced, any other is kept."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from diffusekrona import check_data, inspect
from diffusekrona.adapters.file import Adapter, write_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.files import replace_folder, write_text
from diffusekrona.common.own_files import is_own, set_aside, without_mark, write_result
from diffusekrona.krona import KronAConfig
from diffusekrona.sampling.grids import save_png

CONTENTS = {
    "index.html": "<html><body><footer>DiffuseKronA 1</footer>\n</body>\n</html>\n",
    "page": "<html><body><footer>DiffuseKronA 1</footer>\n</body>\n</html>\n",
    "results.json": json.dumps({"scores": [1, 2]}, indent=1),
    "facts.txt": json.dumps({"scores": [1, 2]}),
    "results.md": "| a |\n|---|\n| 1 |\n",
    "run.yaml": "# base\nseed: 1\n",
    "results.csv": "name,score\na,1\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_own_file_is_replaced_and_a_foreign_one_is_kept(tmp_path: Path, name: str):
    path, aside = tmp_path / name, tmp_path / f"{name}.set-aside"
    path.write_text("what I wrote about DiffuseKronA, written by me\n")
    write_result(path, CONTENTS[name])
    assert aside.read_text().startswith("what I wrote")
    once = path.read_bytes()
    for _ in range(2):
        write_result(path, CONTENTS[name])
    assert path.read_bytes() == once
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, aside.name])


def test_marks_leave_the_contents_readable(tmp_path: Path):
    written = {name: write_result(tmp_path / name, text) for name, text in CONTENTS.items()}
    assert json.loads(written["results.json"].read_text())["scores"] == [1, 2]
    assert without_mark(written["results.md"].read_text()) == CONTENTS["results.md"]
    assert yaml.safe_load(written["run.yaml"].read_text()) == {"seed": 1}


def test_an_edited_card_is_its_owners(tmp_path: Path):
    card = write_result(tmp_path / "README.md", "# dog\n")
    card.write_text(card.read_text().replace("# dog", "# My dog, Rex"))
    write_result(card, "# dog\n")
    assert "Rex" in (tmp_path / "README.md.set-aside").read_text()


def test_links_folders_and_pictures_are_kept(tmp_path: Path):
    (tmp_path / "thesis.json").write_text("{}")
    (tmp_path / "a.json").symlink_to(tmp_path / "thesis.json")
    write_result(tmp_path / "a.json", "{}")
    assert (tmp_path / "thesis.json").read_text() == "{}"
    (tmp_path / "b.html").mkdir()
    write_result(tmp_path / "b.html", CONTENTS["index.html"])
    assert (tmp_path / "b.html.set-aside").is_dir()
    photo = Image.new("RGB", (8, 8), "red")
    photo.save(tmp_path / "photo.png")
    write_result(tmp_path / "photo.png", CONTENTS["index.html"])
    with Image.open(tmp_path / "photo.png.set-aside") as kept:
        assert kept.getpixel((0, 0)) == (255, 0, 0)
    photo.save(tmp_path / "grid.png")
    for _ in range(2):
        save_png(photo, tmp_path / "grid.png")
    assert is_own(tmp_path / "grid.png")
    assert len(list(tmp_path.glob("grid*"))) == 2


def test_another_programs_adapter_is_kept(tmp_path: Path):
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"mine")
    config = KronAConfig(a1=2, a2=2, target_modules=["to_q"])
    tensors = {"to_q.krona_a": torch.ones(2, 2), "to_q.krona_b": torch.ones(2, 2)}
    adapter = Adapter(tensors, {"unet": config}, {"diffusekrona": "1"})
    for _ in range(2):
        write_adapter(adapter, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.set-aside"]
    assert (tmp_path / f"{path.name}.set-aside").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["{}", "{\n}", '{"a": 1}', '{\n "a": 1\n}'])
def test_a_marked_object_is_json(tmp_path: Path, text: str) -> None:
    path = write_result(tmp_path / "results.json", text)
    assert json.loads(path.read_text()) == {"written_by": "diffusekrona", **json.loads(text)}
    assert is_own(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("through_a_link", [False, True])
def test_devices_and_pipes_stay_what_they_are(tmp_path: Path, through_a_link: bool) -> None:
    """As the superuser, `--output /dev/null` would take the device from the whole machine."""
    path = tmp_path / "page.html"
    target = tmp_path / "pipe" if through_a_link else path
    os.mkfifo(target)
    if through_a_link:
        path.symlink_to(target)
    for write in (
        lambda: write_result(path, "<html>"),
        lambda: set_aside(path),
        lambda: write_text(path, "text"),
        lambda: replace_folder(path).__enter__(),
    ):
        with pytest.raises(UserError, match=r"page\.html is a device or a pipe"):
            write()
    assert target.is_fifo() and path.is_symlink() == through_a_link
    assert len(list(tmp_path.iterdir())) == 1 + through_a_link


@pytest.mark.parametrize("program", [inspect, check_data])
def test_a_users_folder_is_not_renamed_for_a_page(tmp_path: Path, program) -> None:
    (tmp_path / "pages").mkdir()
    for flag in ("--output", "--json"):
        for name in ("", ".", str(tmp_path / "pages")):
            with pytest.raises(UserError, match="is a folder: give the name of a file"):
                program.main(["nowhere", f"{flag}={name}"])
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_what_the_system_will_not_rename_is_one_line(tmp_path: Path, monkeypatch) -> None:
    def busy(*_names: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "a.html").write_text("mine")
    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(UserError, match=r"a\.html was not written by DiffuseKronA.*busy"):
        write_result(tmp_path / "a.html", "<html>")
    assert (tmp_path / "a.html").read_text() == "mine"


def test_a_page_names_files_whose_names_are_not_unicode(tmp_path: Path) -> None:
    write_result(tmp_path / "a.html", "<p>caf\udce9.jpg")
    assert (tmp_path / "a.html").read_text() == "<p>caf?.jpg"
