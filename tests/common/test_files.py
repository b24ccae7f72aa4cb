"""Files and folders replaced whole: failures, kills at the worst points, other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusekrona.common.errors import UserError
from diffusekrona.common.files import (
    clean_leftovers,
    replace_folder,
    replace_whole,
    slug,
    slugs,
    temporary_folder,
)

# A replacement of a file or a folder, killed where the n-th call of a function begins.
KILLED = """
import os, signal, sys
from pathlib import Path
from diffusekrona.common import files

kind, destination, function, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
module = {"replace": os, "fsync": os, "rmtree": files.shutil}[function]
real, calls = getattr(module, function), []

def counted(*args, **kwargs):
    calls.append(args)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(module, function, counted)
if kind == "folder":
    with files.replace_folder(destination) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("new")
else:
    with files.replace_whole(destination) as file:
        file.write_text("new")
"""


def kill(kind: str, destination: Path, function: str, number: int) -> None:
    command = [sys.executable, "-c", KILLED, kind, str(destination), function, str(number)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def content(destination: Path) -> str:
    return (destination / "part" / "weights" if destination.is_dir() else destination).read_text()


def write(kind: str, destination: Path, text: str) -> None:
    if kind == "folder":
        with replace_folder(destination) as folder:
            (folder / "part").mkdir()
            (folder / "part" / "weights").write_text(text)
    else:
        with replace_whole(destination) as file:
            file.write_text(text)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    ("kind", "function", "number", "left"),
    [
        ("file", "fsync", 1, "old"),
        ("file", "replace", 1, "old"),
        ("file", "rmtree", 1, "new"),
        ("folder", "fsync", 1, "old"),
        ("folder", "replace", 1, "old"),
        ("folder", "replace", 2, "old"),  # between the two renames nothing is there
        ("folder", "rmtree", 1, "new"),
    ],
)
def test_what_a_killed_run_leaves_is_cleaned(tmp_path: Path, kind, function, number, left) -> None:
    destination = tmp_path / "a" / "model"
    write(kind, destination, "old")
    kill(kind, destination, function, number)
    assert len(list((tmp_path / "a").iterdir())) == (
        1 if (function, number) == ("replace", 2) else 2
    )
    clean_leftovers(tmp_path / "a")
    assert os.listdir(tmp_path / "a") == ["model"]
    assert content(destination) == left


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_a_live_run_and_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    theirs = [".diffusekrona-partial-file", ".x.abcdefgh.partial", ".other"]
    (tmp_path / theirs[0]).write_text("a file of this name is not a working folder")
    (tmp_path / theirs[1]).write_text("somebody's")
    (tmp_path / theirs[2]).mkdir()
    (tmp_path / ".diffusekrona-partial-link").symlink_to(tmp_path / theirs[2])
    with replace_whole(tmp_path / "live") as file:
        file.write_text("live")
        again = (
            "import sys; from diffusekrona.common.files import clean_leftovers as c; c(sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", again, str(tmp_path)], check=True)
        clean_leftovers(tmp_path)
    assert (tmp_path / "live").read_text() == "live"
    assert {".diffusekrona-partial-link", "live", *theirs} == set(os.listdir(tmp_path))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_one_and_nothing_else(tmp_path: Path, kind) -> None:
    destination = tmp_path / ("n" * 250)  # the longest that the file system takes
    write(kind, destination, "old")
    replace = replace_folder if kind == "folder" else replace_whole
    with pytest.raises(ZeroDivisionError), replace(destination) as new:
        (new / "x" if kind == "folder" else new).write_text("half")
        raise ZeroDivisionError
    assert content(destination) == "old" and len(os.listdir(tmp_path)) == 1
    write(kind, destination, "new")
    assert content(destination) == "new" and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("text", ["学" * 90, "𠮷" * 90, "é" * 90, "a/../b\0:*?", "…", "x" * 300])
def test_names_are_legal_and_short_enough(tmp_path: Path, text: str) -> None:
    name = f"grid_{slug(text, 80)}.png"
    assert len(name.encode()) <= 255 and not set(name) & set('/\\\0:*?"<>|')
    (tmp_path / name).touch()


def test_names_of_several_texts_differ() -> None:
    long = "学习率" * 40
    names = slugs([long + "一", long + "二", "a b", "a-b", "A·B", "a b 2"], 80)
    assert len(set(names)) == 6 and names[2:5] == ["a-b", "a-b-2", "a-b-3"]
    assert slugs(["dog", "teapot"]) == ["dog", "teapot"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_temporary_folder_goes_with_its_process_or_with_the_next(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from diffusekrona.common.files import temporary_folder

with temporary_folder() as folder:
    (folder / "config.json").write_text("{}")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    where = {**os.environ, "TMPDIR": str(tmp_path)}
    for how, left in (("done", 0), ("killed", 1), ("done", 0)):
        subprocess.run([sys.executable, "-c", code, how], env=where, check=False)
        assert len(list(tmp_path.iterdir())) == left
    with temporary_folder() as folder:
        assert folder.is_dir() and not any(folder.iterdir())
    assert not folder.parent.exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "large disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to("large disk/real")  # nothing is there yet
    for text in ("first", "second"):
        write(kind, link, text)
        assert link.is_symlink() and content(tmp_path / "large disk" / "real") == text
    assert [p.name for p in (tmp_path / "large disk").iterdir()] == ["real"]


def test_a_link_in_a_circle_stays(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for kind in ("file", "folder"):
        with pytest.raises(UserError, match="lead in a circle"):
            write(kind, tmp_path / "circle", "text")
    assert (tmp_path / "circle").is_symlink()
