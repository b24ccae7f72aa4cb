"""Runs as processes of their own: started, queued, stopped, resumed.

The page only writes `run.yaml` and starts the ordinary command; from then on neither needs the
other. Whether a run is alive is asked of the locks that it holds, so runs that a shell started are
stopped as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ..common.errors import UserError, writing
from ..common.run_record import RUN_SETTINGS
from ..common.settings import build, check_limits
from ..common.settings_files import read_settings_file, write_settings_file
from ..training.requests import DRAW_NOW, SAVE_NOW, ask
from ..training.settings import TrainSettings, resolve
from .following import defaults_of
from .form import paths_of
from .places import Workspace, inside, run_folders
from .turn import Ticket, tickets

LOG = "log.txt"


def settings_from(values: Mapping[str, Any]) -> TrainSettings:
    """A run's settings from values by name, as its command line would give them.

    Raises:
        UserError: values that cannot work.
    """
    return resolve(check_limits(build(TrainSettings, {**defaults_of(values), **values})))


def check_paths(workspace: Workspace, values: Mapping[str, Any]) -> None:
    """Refuse paths outside data/ and outputs/. Raises UserError, naming the flag."""
    for name, path in paths_of(TrainSettings, values).items():
        rooms = ("outputs",) if name == "output_dir" else ("data", "outputs")
        try:
            found = inside(workspace, path, rooms)
        except UserError as error:
            raise UserError(f"--{name}: {error}") from None
        if name == "output_dir" and found == workspace.outputs.resolve():
            raise UserError("--output_dir: give a folder in outputs/, such as outputs/dog/first.")
        if name in ("init_from", "holdout_data_dir") and not os.path.exists(found):
            raise UserError(f"--{name}: {path} is not there, or cannot be read.")


def check_pictures_there(workspace: Workspace, folder: Path) -> None:
    """Refuse a folder that a run would end with at once. Raises UserError."""
    try:
        reason = "" if os.listdir(workspace.root / folder) else "is empty"
    except FileNotFoundError:
        reason = "is not there"
    except NotADirectoryError:
        reason = ""  # a file that names folders
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    if reason:
        raise UserError(f"{folder} {reason}: drop pictures of the subject first.")


def start(workspace: Workspace, values: Mapping[str, Any]) -> Path:
    """Start a new run, or let it wait for those that run; its folder.

    Raises:
        UserError: settings that cannot work; the folder holds a run already.
    """
    check_paths(workspace, values)
    settings = settings_from(values)
    folder = inside(workspace, settings.output.output_dir, ("outputs",))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()  # of two pages that press the button at once, one succeeds
        except FileExistsError:
            raise UserError(
                f"--output_dir {settings.output.output_dir} is there already: choose another name, "
                "or resume that run on the tab Watch."
            ) from None
    try:
        write_settings_file(settings, folder / RUN_SETTINGS)
        _launch(workspace, folder)
    except UserError:  # such as a full disk: the name stays free
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def resume(workspace: Workspace, folder: Path) -> None:
    """Resume a run that was stopped from its newest checkpoint.

    Raises:
        UserError: it runs or waits already, or has no settings.
    """
    if process_of(workspace, folder) is not None:
        raise UserError(f"{workspace.relative(folder)} is running or waiting already.")
    if not os.path.isfile(folder / RUN_SETTINGS):
        raise UserError(
            f"{workspace.relative(folder)} has no {RUN_SETTINGS}: start it from a shell."
        )
    _launch(workspace, folder, "--resume_from_checkpoint", "latest")


def command_of(workspace: Workspace, folder: Path) -> list[str]:
    """The command that trains in `folder`, without the interpreter."""
    return ["diffusekrona", "train", "--config", f"{workspace.relative(folder)}/{RUN_SETTINGS}"]


def _launch(workspace: Workspace, folder: Path, *more: str) -> None:
    program, *arguments = command_of(workspace, folder)
    command = [sys.executable, "-m", program, *arguments, *more]
    queued = [sys.executable, "-m", "diffusekrona.ui.turn", str(queue(workspace)), str(folder)]
    spawn(workspace, [*queued, *command], folder / LOG)


def queue(workspace: Workspace) -> Path:
    return workspace.outputs / ".queue"


def spawn(workspace: Workspace, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, with its output in `log`."""
    path = os.pathsep.join(filter(None, [_PACKAGE, os.environ.get("PYTHONPATH")]))
    with writing(log), open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=workspace.root,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or a zombie would stay
    return process


_PACKAGE = str(Path(__file__).parents[2])


def ticket_of(workspace: Workspace, folder: Path) -> Ticket | None:
    """The ticket of a run that this page started and that is alive, waiting ones included."""
    return next((t for t in tickets(queue(workspace)) if Path(t.folder) == folder), None)


def is_locked(folder: Path) -> bool:
    """Whether a run is writing to `folder`."""
    path = folder / ".lock"
    if not os.path.isfile(path):  # nor where it cannot be seen
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def process_of(workspace: Workspace, folder: Path) -> int | None:
    """The process that trains in `folder`, or waits to; None if there is none."""
    if ticket := ticket_of(workspace, folder):
        return ticket.pid
    return _holder(folder / ".lock") if is_locked(folder) else None


def _holder(file: Path) -> int | None:
    """The process that has a file open."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(
                Path(opened.path) == file for opened in process.open_files()
            ):
                return process.pid
    return None


def stop(workspace: Workspace, folder: Path) -> None:
    """Ask a run to save a checkpoint and end; one that waits leaves the queue.

    Raises:
        UserError: it does not run.
    """
    pid = process_of(workspace, folder)
    if pid is None:
        raise UserError(f"{workspace.relative(folder)} is not running.")
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise UserError(f"Process {pid} cannot be stopped: {error.strerror}.") from error


def save_now(workspace: Workspace, folder: Path) -> None:
    """Ask a run to save a checkpoint and go on. Raises UserError if it does not run."""
    _ask(workspace, folder, SAVE_NOW)


def draw_now(workspace: Workspace, folder: Path) -> None:
    """Ask a run to draw its validation prompts and go on.

    Raises:
        UserError: it does not run, or has no prompt.
    """
    if (folder / RUN_SETTINGS).is_file():
        values = read_settings_file(TrainSettings, folder / RUN_SETTINGS)
        if not values.get("validation_prompt"):
            raise UserError(f"{workspace.relative(folder)} has no validation prompt to draw.")
    _ask(workspace, folder, DRAW_NOW)


def _ask(workspace: Workspace, folder: Path, name: str) -> None:
    if not is_locked(folder):
        raise UserError(f"{workspace.relative(folder)} is not running.")
    with writing(folder / name):
        ask(folder, name)


def next_name(workspace: Workspace, subject: str, method: str) -> str:
    """The first free one of outputs/SUBJECT/METHOD-1, -2 …"""
    taken = {workspace.relative(path) for path in run_folders(workspace)}
    number = 1
    while (name := f"outputs/{subject}/{method}-{number}") in taken or os.path.lexists(
        workspace.root / name
    ):
        number += 1
    return name
