"""Bringing downloaded subjects into data/<subject>/input/, and the one-line errors."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffusekrona import format_datasets
from diffusekrona.common.errors import UserError, exit_on_user_error, writing

REPOSITORY = Path(__file__).resolve().parents[2]


def picture(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (shade, 40, 80)).save(path)
    return path


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A download in the public dataset's layout, with what gathers in such folders."""
    root = tmp_path / "download"
    for shade, name in enumerate(["dog/00.jpg", "dog/01.JPG", "cat/00.png", "dog/generated/9.jpg"]):
        picture(root / name, shade * 50)
    (root / "dog" / "00.txt").write_text("a sks dog")
    (root / "dog" / "README.txt").write_text("read me")
    (root / "dog" / ".DS_Store").write_bytes(b"\0")
    whole = (root / "dog" / "00.jpg").read_bytes()
    (root / "dog" / "broken.jpg").write_bytes(whole[:200])
    (root / "cat" / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a cat"}')
    (root / "bad").mkdir()
    (root / "bad" / "a.jpg").write_text("text")
    picture(root / ".hidden" / "a.jpg")
    picture(root / "generated" / "a.jpg")
    (root / "references_and_licenses.txt").write_text("thanks")
    return root


BROUGHT = {
    *("dog/input/00.jpg", "dog/input/01.JPG", "dog/input/00.txt"),
    *("cat/input/00.png", "cat/input/metadata.jsonl"),
}


def test_a_downloaded_dataset_is_copied(
    download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, before = tmp_path / "data", tree(download)
    assert format_datasets.main([str(download), "--data_dir", str(data), "--dry_run"]) == 0
    assert not data.exists()
    assert "3 files would be copied" in capsys.readouterr().out
    assert format_datasets.main([str(download), "--data_dir", str(data)]) == 0
    assert tree(data) == BROUGHT and tree(download) == before
    out = capsys.readouterr().out
    assert "dog: 2 pictures; 3 files copied" in out and "cat: 1 picture; 2 files copied" in out
    for name in (".DS_Store", "generated", "broken.jpg", "README.txt", "bad: no usable picture"):
        assert name in out
    stamps = {name: (data / name).stat().st_mtime_ns for name in tree(data)}
    assert format_datasets.main([str(download), "--data_dir", str(data)]) == 0  # and once more
    assert stamps == {name: (data / name).stat().st_mtime_ns for name in tree(data)}
    assert "nothing to do, 3 already there" in capsys.readouterr().out


def test_one_subject_or_some(download: Path, tmp_path: Path) -> None:
    for source in (download / "cat", download):
        data = tmp_path / f"from_{source.name}"
        format_datasets.main([str(source), "--data_dir", str(data), "--subjects", "cat"])
        assert {name.split("/")[0] for name in tree(data)} == {"cat"}
    with pytest.raises(UserError, match=r"no pictures of cow .* has bad, cat, dog"):
        format_datasets.main([str(download), "--subjects", "cow", "cat"])
    with pytest.raises(UserError, match=r"a\.jpg"):
        format_datasets.main([str(download), "--subjects", "bad"])


def test_the_public_repository_and_a_finished_data_folder_are_understood(
    download: Path, tmp_path: Path
) -> None:
    (tmp_path / "clone").mkdir()
    shutil.move(download, tmp_path / "clone" / "dataset")
    one, other = tmp_path / "one", tmp_path / "other"
    format_datasets.main([str(tmp_path / "clone"), "--data_dir", str(one)])
    format_datasets.main([str(one), "--data_dir", str(other)])
    assert tree(one) == tree(other) == BROUGHT
    for source in (one / "dog", one / "dog" / "input"):
        format_datasets.main([str(source), "--data_dir", str(tmp_path / "single")])
    assert tree(tmp_path / "single") == {name for name in BROUGHT if name.startswith("dog")}


def test_a_different_file_is_never_overwritten_unasked(download: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mine = picture(data / "dog" / "input" / "00.jpg", 250)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"00\.jpg is already there and differs.*--overwrite"):
        format_datasets.main([str(download), "--data_dir", str(data)])
    assert mine.read_bytes() == before and tree(data) == {"dog/input/00.jpg"}
    format_datasets.main([str(download), "--data_dir", str(data), "--overwrite"])
    assert mine.read_bytes() == (download / "dog" / "00.jpg").read_bytes()


def test_what_a_killed_copy_left_goes_with_the_next(download: Path, tmp_path: Path) -> None:
    dead = tmp_path / "data" / "dog" / "input" / ".diffusekrona-partial-dead"
    (dead / "new").mkdir(parents=True)
    (dead / "new" / "00.jpg").write_bytes(b"half a pic")
    format_datasets.main([str(download), "--data_dir", str(tmp_path / "data")])
    assert not dead.exists()


def test_move(download: Path, tmp_path: Path) -> None:
    link = download / "dog" / "02.jpg"
    link.symlink_to("01.JPG")
    format_datasets.main([str(download), "--data_dir", str(tmp_path / "data"), "--move"])
    assert tree(tmp_path / "data") == BROUGHT | {"dog/input/02.jpg"}
    moved = tmp_path / "data" / "dog" / "input" / "02.jpg"
    assert moved.is_file() and not moved.is_symlink()
    assert not (download / "dog" / "00.jpg").exists() and not link.is_symlink()
    assert (download / "dog" / "broken.jpg").exists() and (download / "dog" / ".DS_Store").exists()


def test_pictures_beside_input_move_in_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    picture(data / "dog" / "00.jpg")
    picture(data / "cat" / "input" / "00.jpg")
    for source in (data, data / "dog"):
        format_datasets.main([str(source), "--data_dir", str(data)])
        assert tree(data) == {"dog/00.jpg", "cat/input/00.jpg"}
        assert "1 file beside input/: add --move" in capsys.readouterr().out
    format_datasets.main([str(data), "--data_dir", str(data), "--move"])
    assert tree(data) == {"dog/input/00.jpg", "cat/input/00.jpg"}


def test_clean_deletes_junk_in_the_data_folder_alone(
    download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(elsewhere / "x.jpg")
    format_datasets.main([str(download), "--data_dir", str(data)])
    keep = ["dog/LICENSE", "dog/masks/0.png", "dog/input/torn.jpg", "dog/input/torn.txt"]
    keep += ["dog/input/torn.caption", "dog/dataset.toml", "dog/input/captions.json"]
    junk = [
        *("dog/.DS_Store", "dog/generated/a/b.jpg", "dog/notes.pdf", "dog/input/Thumbs.db"),
        *("dog/input/generated/c.jpg", "dog/input/._00.jpg", "dog/input/stray.txt"),
    ]
    for name in keep + junk:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("something")
    (data / "cat" / "generated").symlink_to(elsewhere)
    full, before = tree(data), tree(download)
    format_datasets.main([str(download), "--data_dir", str(data)])
    format_datasets.main([str(download), "--data_dir", str(data), "--clean", "--dry_run"])
    assert tree(data) == full
    capsys.readouterr()
    format_datasets.main([str(download), "--data_dir", str(data), "--clean"])
    assert tree(data) == BROUGHT | set(keep) and tree(download) == before
    assert (elsewhere / "x.jpg").exists() and not (data / "cat" / "generated").is_symlink()
    assert capsys.readouterr().out.count("deleted") == 8


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diffusekrona.format_datasets", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, **options},  # type: ignore[dict-item]
    )


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "junk", "blocked"])
def test_a_mistake_is_one_line_and_code_2(download: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "file":
        source.write_bytes(b"PK")
    elif kind == "blocked":  # the data folder is a file
        source = download
        (tmp_path / "data").touch()
    elif kind != "missing":
        source.mkdir()
    if kind == "junk":
        (source / "a.jpg").write_text("text")
    result = run(source, "--data_dir", tmp_path / "data")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr and "Traceback" not in result.stderr


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    picture(tmp_path / "ünïcödé 狗" / "é.jpg")
    source = tmp_path / "ünïcödé 狗"
    result = run(source, "--data_dir", tmp_path / "data", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 0 and not result.stderr
    assert (tmp_path / "data" / source.name / "input" / "é.jpg").is_file()


def exit_of(error: BaseException | None) -> int | str | None:
    def main() -> int:
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as caught:
        exit_on_user_error(main)
    return caught.value.code


def test_exit_codes_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(None) == 0
    assert exit_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert exit_of(UserError("first\nsecond")) == 2
    assert capsys.readouterr().err == "error: first second\n"
    assert exit_of(OSError(errno.ENOSPC, "No space left on device", "out/a.bin")) == 2
    line = "no space left on the disk holding out/a.bin: free some room and run again"
    assert capsys.readouterr().err == f"error: {line}\n"
    with pytest.raises(OSError, match="odd"):
        exit_on_user_error(lambda: (_ for _ in ()).throw(OSError(errno.EDOM, "odd")))  # a bug


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "from diffusekrona.common.errors import exit_on_user_error\n"
        "exit_on_user_error(lambda: [print('x' * 100) for _ in range(20000)] and 0)"
    )
    command = f'"{sys.executable}" -c "$0" | head -1'
    result = subprocess.run(
        ["sh", "-c", command, code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stderr == "" and result.stdout.count("\n") == 1


class RustError(Exception):
    """As safetensors raises them: not an OSError."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk holding a/b"),
        (RustError("I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write a/b: the disk is read-only"),
        (FileExistsError(errno.EEXIST, "File exists"), "a file exists where a folder should be"),
    ],
)
def test_writing_names_the_file(error: Exception, line: str) -> None:
    with pytest.raises(UserError, match=line), writing("a/b"):
        raise error


def test_writing_lets_other_errors_pass() -> None:
    for error in (RuntimeError("a bug"), UserError("reported already"), KeyError("x")):
        with pytest.raises(type(error)), writing("a/b"):
            raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_a_really_full_disk() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(UserError, match="no space left"),
        writing("/dev/full"),
    ):
        file.write(b"x")


def test_real_downloads(tmp_path: Path) -> None:
    source = REPOSITORY.parent / "shared" / "dreambooth"
    if not source.is_dir():
        pytest.skip("the DreamBooth dataset is not here")
    format_datasets.main([str(source), "--data_dir", str(tmp_path), "--subjects", "dog6"])
    assert len(tree(tmp_path)) == 5
