"""Printing and arguments where the locale, the shell or the reader of the output is unusual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
import sys
from pathlib import Path
from diffusekrona.common.errors import exit_on_user_error
def main():
    Path(sys.argv[1]).write_text(sys.argv[2], encoding="utf-8")
    print(sys.argv[2])
exit_on_user_error(main)
"""
LEAVES = """
import sys, time
from diffusekrona.common.errors import exit_on_user_error
from diffusekrona.common.streams import on_broken_pipe
def main():
    noted = []
    with on_broken_pipe(lambda: noted.append(1)):
        while not noted:
            print("x" * 100000, file=getattr(sys, sys.argv[1]), flush=True)
        print("more", file=getattr(sys, sys.argv[1]), flush=True)
    open(sys.argv[2], "w").close()
    return 7
exit_on_user_error(main)
"""


FULL = """
import sys
from diffusekrona.common.errors import exit_on_user_error
from diffusekrona.common.streams import on_broken_pipe
def main():
    with on_broken_pipe(lambda: sys.exit(9)):
        for _ in range(3):
            print("x" * 100000, file=getattr(sys, sys.argv[1]), flush=True)
    open(sys.argv[2], "w").close()
    return 7
exit_on_user_error(main)
"""


@pytest.mark.skipif(os.name != "posix", reason="locales of the C library")
@pytest.mark.parametrize("mode", ["0", ""])
def test_a_c_locale_takes_every_name_and_prompt(tmp_path: Path, mode: str) -> None:
    env = {**os.environ, "LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0"}
    env = {**env, "PYTHONUTF8": mode} if mode else env
    name, prompt = "bild_ö學.txt", "ein sks hünd 🐕"
    command = [sys.executable, "-c", PRINTS, str(tmp_path / name), prompt]
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert (tmp_path / name).read_text(encoding="utf-8") == prompt
    assert done.stdout.decode() == prompt + "\n" and done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_log_on_a_full_disk_costs_no_training(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        for stream in ("stdout", "stderr"):
            done = tmp_path / stream
            inside = [sys.executable, "-c", FULL, stream, str(done)]
            assert subprocess.run(inside, **{stream: full}).returncode == 7 and done.exists()
        outside = [sys.executable, "-c", PRINTS, str(tmp_path / "a"), "x"]
        ended = subprocess.run(outside, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "no space" in ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_is_noticed_and_stops_nothing(tmp_path: Path, stream: str) -> None:
    command = [sys.executable, "-c", LEAVES, stream, str(tmp_path / "done")]
    process = subprocess.Popen(command, **{stream: subprocess.PIPE})
    getattr(process, stream).read(10)
    getattr(process, stream).close()
    assert process.wait(timeout=60) == 7 and (tmp_path / "done").exists()
