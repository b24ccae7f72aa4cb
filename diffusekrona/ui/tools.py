"""The programs choose, evaluate, inspect and convert, as processes started from a form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError, writing
from ..common.settings import build, check_limits, options_of
from ..common.weights import split_name, split_weight
from ..convert import ConvertSettings
from ..evaluation.choice_settings import ChooseSettings
from ..evaluation.prompts import LISTS
from ..evaluation.settings import EvaluateSettings
from ..inspect import InspectSettings
from .drawing import flags_of
from .fields import Choices
from .jobs import LOG, spawn
from .places import Workspace, adapter_files, inside, run_folders, subjects

REPORTS = "outputs/reports"


@dataclass(frozen=True)
class Tool:
    """One program.

    Attributes:
        name: its subcommand.
        settings: its settings class.
        first: the fields shown first; the others follow in an accordion.
        choices: fields that are chosen from what is there.
        left_out: fields that the page does not offer.
        output: (folder of this report) to the settings that make it write there.
    """

    name: str
    settings: type
    first: tuple[str, ...]
    choices: Mapping[str, Choices]
    left_out: tuple[str, ...]
    output: Callable[[str], dict[str, Any]]


def _photo_folders(workspace: Workspace) -> list[str]:
    return [f"data/{name}/input" for name in subjects(workspace)]


def _runs(workspace: Workspace) -> list[str]:
    return [workspace.relative(path) for path in run_folders(workspace)]


def _adapters_or_base(workspace: Workspace) -> list[str]:
    return ["none", *adapter_files(workspace)]


TOOLS = (
    Tool(
        "choose",
        ChooseSettings,
        ("run", "prefer", "weights", "every", "budget"),
        {"run": _runs},
        ("single_file_config", "device"),
        lambda folder: {},
    ),
    Tool(
        "evaluate",
        EvaluateSettings,
        ("adapter", "subject_dir", "class_word", "identifier", "prompts", "seeds"),
        {"adapter": _adapters_or_base, "subject_dir": _photo_folders},
        ("output_dir", "score_only", "single_file_config", "device"),
        lambda folder: {"output_dir": Path(folder)},
    ),
    Tool(
        "inspect",
        InspectSettings,
        ("adapter", "draw", "photos"),
        {"adapter": adapter_files, "photos": _photo_folders},
        ("output", "json", "device"),
        lambda folder: {"output": Path(folder) / "inspect.html"},
    ),
    Tool(
        "convert",
        ConvertSettings,
        ("source", "to", "destination"),
        {"source": adapter_files},
        ("push_to_hub", "private", "adapter"),
        lambda folder: {},
    ),
)
# Settings that hold paths as text: where each may lead.
_ROOMS = {
    "run": ("outputs",),
    "adapter": ("outputs",),
    "source": ("outputs",),
    "destination": ("outputs",),
    "subject_dir": ("data",),
    "holdout_data_dir": ("data",),
    "photos": ("data",),
    "prompts": ("data", "outputs"),
}
_WORDS = {"adapter": {"none"}, "prompts": {"auto", *LISTS}}  # values that are not paths


def check_places(workspace: Workspace, values: Mapping[str, Any]) -> None:
    """Refuse paths outside data/ and outputs/, what is not there, and words that would be flags.

    Raises:
        UserError: naming the field.
    """
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and one.startswith("-"):
                raise UserError(f"{name}: {one} begins with a hyphen.")
            place = split_name(str(one))[1] if name == "adapter" else str(one)
            if name in _ROOMS and place not in _WORDS.get(name, ()):
                place = split_weight(place)[0]
                path = inside(workspace, place, _ROOMS[name])
                if name != "destination":
                    _check_there(place, path)


def _check_there(name: str, path: Path) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{name} is not there.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error


def start(
    workspace: Workspace, tool: Tool, values: Mapping[str, Any]
) -> tuple[Path, subprocess.Popen[bytes], list[str]]:
    """Start the program; its report's folder, its process and its command.

    Raises:
        UserError: values that cannot work.
    """
    check_places(workspace, values)
    folder = new_folder(workspace, tool.name)
    values = {**values, **tool.output(workspace.relative(folder))}
    check_limits(build(tool.settings, values))
    ordered = {name: values[name] for name in options_of(tool.settings) if name in values}
    words = [tool.name, *flags_of(tool.settings, ordered)]
    process = spawn(workspace, [sys.executable, "-m", "diffusekrona", *words], folder / LOG)
    _started[folder] = process
    return folder, process, ["diffusekrona", *words]


_started: dict[Path, subprocess.Popen[bytes]] = {}  # by the report's folder


def stop(workspace: Workspace, folder: str) -> None:
    """End a program that was started here; one that has ended, or is unknown, is left alone."""
    if process := _started.get(workspace.root / folder):
        process.terminate()


def stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether it was ended by `stop`, or by another's SIGTERM."""
    return process.returncode == -signal.SIGTERM


def new_folder(workspace: Workspace, name: str) -> Path:
    """A new folder for a report: outputs/reports/NAME-1, -2 … Raises UserError if the disk
    refuses."""
    top = workspace.root / REPORTS
    with writing(top):
        top.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            try:
                (top / f"{name}-{number}").mkdir()
                return top / f"{name}-{number}"
            except FileExistsError:
                number += 1


def reports(workspace: Workspace) -> list[str]:
    """Every page and model card in outputs/, newest first."""
    found = [
        path
        for pattern in ("**/*.html", "**/README.md")
        for path in workspace.outputs.glob(pattern)
        if not path.is_symlink() and path != workspace.outputs / "README.md"
    ]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [workspace.relative(path) for path in found]
