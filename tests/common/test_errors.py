"""Words of errors."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from diffusekrona.common.errors import UserError, exit_on_user_error, reason_of, shortened


def test_the_reason_is_the_first_line_or_the_type() -> None:
    assert reason_of(ValueError("\nno such file\nand more")) == "no such file"
    assert reason_of(ValueError(" ")) == "ValueError"


def test_text_from_a_file_is_short_and_harmless() -> None:
    assert shortened("a\n  b\x1b[31m\udcff") == r"a b\x1b[31m\udcff"
    assert shortened("a" * 40 + "b" * 40, 9) == "aaaa…bbbb"
    for length in (3, 60, 1000):
        assert len(shortened("x" * 5000, length)) == length
    assert shortened(10**5000) == "a number of more digits"


def test_an_error_does_not_share_its_line_with_a_progress_bar() -> None:
    code = """
from diffusekrona.common.errors import UserError, exit_on_user_error
from tqdm.auto import tqdm

def pictures():
    with tqdm(total=9, desc="pictures") as bar:
        bar.update(2)
        yield 1

def main():
    for picture in pictures():
        raise UserError("no space left")

exit_on_user_error(main)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: no space left"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "…"), "a file: its disk reports an error"),  # as `read` raises it
        (
            OSError(errno.EFBIG, "…", "a"),
            "a: the file is larger than this disk, or the limits of this user, allow",
        ),
        (OSError(errno.ELOOP, "…", "a/b"), "a/b: symbolic links that lead in a circle"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, line, capsys) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: cannot use {line}\n"


def test_of_a_long_line_the_reason_stays(capsys) -> None:
    def main() -> None:
        raise UserError(f"No folder {'x' * 9999}: give another.")

    with pytest.raises(SystemExit):
        exit_on_user_error(main)
    said = capsys.readouterr().err
    assert said.startswith("error: No folder xxx") and said.endswith("xxx: give another.\n")
    assert len(said) < 1100


def test_links_in_a_circle_are_one_line(tmp_path, capsys) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: (tmp_path / "loop" / "x").resolve() and 0)
    assert ended.value.code in (0, 2)  # newer Pythons resolve it as far as they can
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (ended.value.code == 2) and all("lead in a circle" in x for x in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="such a folder cannot be deleted there")
def test_a_folder_that_was_deleted_is_one_line(tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    program = f'"{sys.executable}" -m diffusekrona.convert a b --to lora'
    command = f'cd "{tmp_path}/gone" && rmdir "{tmp_path}/gone" && {program}'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: The folder that this was started in")
