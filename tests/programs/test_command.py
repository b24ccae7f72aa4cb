"""The command `diffusekrona`: its subcommands are the programs."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffusekrona.__main__ import PROGRAMS

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "diffusekrona", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_names_every_program() -> None:
    done = run()
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"  {name} " in done.stdout for name in PROGRAMS)
    assert all(find_spec(module) for module, _ in PROGRAMS.values())


@pytest.mark.parametrize("name", ["draw", "study", "plan"])
def test_a_subcommand_is_its_module(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout


def test_mistakes_are_one_line() -> None:
    for words in (["drow"], ["format-datasets", "/nowhere"]):
        done = run(*words)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
