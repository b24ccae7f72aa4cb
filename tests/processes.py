"""Programs in processes of their own that do not import the libraries again.

multiprocessing's server imports them once and forks: what such a process does from there on is what
`python -m module arguments` does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
# Of these, what is not installed is passed over.
_SERVER.set_forkserver_preload(
    ["tiny_models", "diffusekrona.training.setup", "uvicorn", "diffusekrona.ui.page"]
)


class Program:
    """A program that runs; what it prints goes to the file `said`."""

    def __init__(self, module: str, *arguments: object, said: Path, **environment: str) -> None:
        self.said = said
        words = [module, *map(str, arguments)]
        given = (words, os.environ | environment, os.getcwd(), said)
        self.process: BaseProcess = _SERVER.Process(target=_run, args=given)
        self.process.start()

    def wait(self, seconds: float = 240) -> int:
        """The exit code; negative after a signal that ended it."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"it did not end\n{self.text()}")
        return code

    def wait_for(self, path: Path) -> None:
        """Wait until the file at `path` has content."""
        wait_for(path, self.process.is_alive, self.text)

    def send(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def text(self) -> str:
        return self.said.read_text(errors="replace")[-3000:] if self.said.exists() else ""


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def wait_for(path: Path, alive: Callable[[], bool], text: Callable[[], str] = str) -> None:
    """Wait until the file at `path` has content, at most as long as its writer lives."""
    end = time.monotonic() + 180
    while not (path.exists() and path.stat().st_size):
        assert alive() and time.monotonic() < end, f"{path} never came\n{text()}"
        time.sleep(0.02)


def run_two(module: str, *arguments: object, said: Path, **environment: str) -> str:
    """As `torchrun --nproc-per-node 2 -m module arguments`; what both said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    both = [
        Program(module, *arguments, said=said.with_name(f"{said.name}-{rank}"),
                **{**world, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]  # fmt: skip
    for program in both:
        assert program.wait() == 0, program.text()
    return "".join(program.text() for program in both)


def _run(words: list[str], environment: dict[str, str], folder: str, said: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have the tests ignore
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(said, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def printing_python(folder: Path) -> Path:
    """A Python that prints its arguments, one per line, in place of running a program; what a
    script asks the package with `-c` is answered."""
    path = folder / "python"
    real = f'[ "$1" != -c ] || exec "{sys.executable}" "$@"'
    path.write_text(f'#!/bin/sh\n{real}\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path
