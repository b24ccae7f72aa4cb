"""What the runs in outputs/ have done so far, read from the files that every run leaves."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..common.errors import UserError
from ..common.json_files import parse_json
from ..common.run_record import RUN_SETTINGS, TRAIN_LOG, read_run_record_or_none
from ..common.settings import LARGEST
from ..common.settings_files import read_settings_file
from ..training.settings import TrainSettings
from .jobs import LOG, is_locked, ticket_of
from .places import Workspace, served
from .turn import tickets

_LOG_BYTES = 20_000  # of the log's end that are shown
_RECENT = 50  # steps that the speed is measured over
LIVE = ("waiting", "starting", "running")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        state: waiting, starting, running, finished, stopped, failed or new.
        step, steps: done and wanted; 0 if unknown.
        curves: name to (step, value) of every number that the run logs, and of the validation loss.
        turned: where the validation loss turned, in a sentence; "" without one.
        speed: steps per second of late; seconds_left at that speed.
        pictures: (step, name from the workspace on) of the validation pictures, newest first.
        photo: the subject's, to compare them with.
        error: the last line of a run that failed, or that one was killed.
        ahead: the run that one which waits is next after.
    """

    name: str
    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    turned: str = ""
    speed: float | None = None
    memory: str = ""
    pictures: tuple[tuple[int, str], ...] = ()
    photo: str | None = None
    error: str = ""
    ahead: str = ""

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or not self.speed or not self.steps:
            return None
        return max(0, self.steps - self.step) / self.speed


def settings_of(folder: Path) -> dict[str, Any]:
    """The values in a run's run.yaml; none if there is none that can be read."""
    try:
        return read_settings_file(TrainSettings, folder / RUN_SETTINGS)
    except UserError:
        return {}


def read_run(workspace: Workspace, folder: Path) -> Run:
    """Everything that the page shows of a run. Files that cannot be read count as missing."""
    from ..training.validation_loss import VALIDATION_LOSS, in_words, read_losses

    values, record = settings_of(folder), read_run_record_or_none(folder)
    losses = read_losses(folder / VALIDATION_LOSS)
    measured = {"validation loss": [(line.step, line.loss) for line in losses]} if losses else {}
    lines = log_lines(folder / TRAIN_LOG)
    step = int(lines[-1]["step"]) if lines else 0
    log = log_tail(folder)
    ahead = _ahead(workspace, folder)
    state = _state(workspace, folder, record is not None, step, log, ahead)
    return Run(
        name=workspace.relative(folder),
        folder=folder,
        state=state,
        step=step,
        steps=(record.steps if record else None) or values.get("max_train_steps") or _total(log),
        curves={**measured, **curves_of(lines)},
        turned=in_words(losses) if len(losses) > 1 else "",
        speed=speed_of(lines),
        memory=(record.peak_memory if record else None)
        or ("" if state == "waiting" else _memory(workspace, folder, log)),
        pictures=_pictures(workspace, folder),
        photo=_photo(workspace, values),
        error=_error(log) if state == "failed" else _killed(folder, state, log),
        ahead=ahead if state == "waiting" else "",
    )


def _state(
    workspace: Workspace, folder: Path, finished: bool, step: int, log: str, ahead: str
) -> str:
    if is_locked(folder):
        return "running" if step else "starting"
    if ticket_of(workspace, folder):
        return "waiting" if ahead else "starting"
    if finished:
        return "finished"
    if _error(log):
        return "failed"
    return "stopped" if step or list(folder.glob("checkpoint-*")) else "new"


def _ahead(workspace: Workspace, folder: Path) -> str:
    """The run before this one in the queue, from the workspace on; "" if there is none."""
    folders = [one.folder for one in tickets(workspace.outputs / ".queue")]
    place = folders.index(str(folder)) if str(folder) in folders else 0
    return folders[place - 1].removeprefix(f"{workspace.root}/") if place else ""


def log_lines(path: Path) -> list[dict[str, float]]:
    """The numbers in the lines of train_log.jsonl; damaged lines are left out."""
    lines = []
    if not os.path.isfile(path):
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):  # damaged, or still being written
            read = parse_json(line, dict[str, Any])
            numbers = {
                k: v for k, v in read.items() if type(v) in (int, float) and abs(v) < LARGEST
            }
            if isinstance(numbers.get("step"), int):
                lines.append(numbers)
    return lines


def curves_of(lines: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Every number of the log against the step, but for the time."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "seconds"):
                curves.setdefault(name, []).append((int(line["step"]), float(value)))
    return curves


def speed_of(lines: list[dict[str, float]]) -> float | None:
    timed = [line for line in lines[-_RECENT:] if "seconds" in line]
    if len(timed) < 2:
        return None
    seconds = timed[-1]["seconds"] - timed[0]["seconds"]
    return (timed[-1]["step"] - timed[0]["step"]) / seconds if seconds > 0 else None


def log_tail(folder: Path) -> str:
    """The end of what the run printed, each progress bar as it was last; "" if there is none."""
    if not os.path.isfile(folder / LOG):  # reading a named pipe would wait for ever
        return ""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(line for line in lines if line)


def _error(log: str) -> str:
    last = log.rpartition("\n")[2]
    return last if re.match(r"(error: |\w*Error\b|Killed)", last) else ""


def _killed(folder: Path, state: str, log: str) -> str:
    """That a run ended without a message, and what Resume does then; "" if it did not."""
    if state != "stopped" or not log or "stopped at step" in log.rpartition("train: ")[2]:
        return ""
    steps = [path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")]
    last = max((int(step) for step in steps if step.isdigit()), default=0)
    then = f"continues from the checkpoint of step {last}" if last else "starts again at step 0"
    why = "it was killed, stopped while loading, or the machine was switched off"
    return f"The run ended without a message: {why}. Resume {then}."


def _total(log: str) -> int:
    found = re.findall(r"train: .*?/(\d+) \[", log)
    return int(found[-1]) if found else 0


def _memory(workspace: Workspace, folder: Path, log: str) -> str:
    """The peak that the run reported, else what its process holds now."""
    if found := re.findall(r"peak memory after the first step: (.*)", log):
        return found[-1]
    ticket = ticket_of(workspace, folder)
    try:
        held = psutil.Process(ticket.pid).memory_info().rss if ticket else 0
    except psutil.Error:
        held = 0
    return f"{held / 2**30:.2f} GiB of memory" if held else ""


def _pictures(workspace: Workspace, folder: Path) -> tuple[tuple[int, str], ...]:
    found = []
    for path in folder.glob("validation/step-*.png"):
        match = re.fullmatch(r"step-(\d+)-\d+\.png", path.name)
        if match and served(workspace, workspace.relative(path)):
            found.append((int(match[1]), workspace.relative(path)))
    return tuple(sorted(found, key=lambda one: (-one[0], one[1])))


def _photo(workspace: Workspace, values: Mapping[str, Any]) -> str | None:
    from ..data.sources import some_photos

    folder = values.get("instance_data_dir")
    if folder is None:
        return None
    path = next(iter(some_photos(workspace.root / folder, 1)), None)
    try:
        name = path and workspace.relative(path)
    except ValueError:
        return None
    return name if name and served(workspace, name) else None
