"""Text files: read whole, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusekrona.common.errors import UserError
from diffusekrona.common.text_files import read_text


def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    for raw in (b"a\n\xc3\xa9", b"\xef\xbb\xbfa\n\xc3\xa9"):
        (tmp_path / "a.txt").write_bytes(raw)
        assert read_text(tmp_path / "a.txt") == "a\né"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "no such file"),
        ("é".encode("utf-16"), "not UTF-8 text"),
        (b"\xff", "not UTF-8 text"),
        (b"x" * 101, "larger than"),
    ],
)
def test_what_is_not_text_is_one_line(raw: bytes | None, says: str, tmp_path: Path) -> None:
    if raw is not None:
        (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(UserError, match=says) as error:
        read_text(tmp_path / "a.txt", most=100)
    assert "a.txt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_nothing_waits_for_a_pipe_or_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read_text(path)


def test_odd_paths_are_one_line() -> None:
    for path in ("~nouser-of-this-name/a", "a" * 300, "a\0b"):
        with pytest.raises(UserError, match="Cannot read"):
            read_text(path)
