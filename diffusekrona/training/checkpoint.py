"""Checkpoints: written atomically, checked before they are trusted, resumed exactly.

A checkpoint is a folder `checkpoint-<step>` with the adapter as an ordinary `adapter.safetensors`,
`training_state.safetensors` (`training_state.py`), and `state.json`, written last, with the size
and hash of every file and a hash of itself. It is filled under a temporary name, flushed and
renamed. Nothing in it is pickled. The order of the data and all noise are pure functions of (seed,
step), and each batch seeds torch's generator, so no generator's state is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError, shortened, writing
from ..common.json_files import read_json
from ..common.own_files import set_aside
from ..common.run_record import RUN_RECORD, STATE_FILE
from .training_state import TrainingState, load_training_state, save_training_state

log = logging.getLogger(__name__)

STATE = "state.json"


@dataclass
class Record:
    """What `state.json` holds.

    Attributes:
        settings: what a resumed run must have in common with this one.
        files: relative path to (bytes, SHA-256).
        digest: SHA-256 of all the others.
    """

    step: int
    settings: dict[str, Any]
    files: dict[str, tuple[int, str]]
    digest: str

    def own_digest(self) -> str:
        content = [self.step, self.settings, {k: list(v) for k, v in self.files.items()}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    accelerator: Any,
    output_dir: Path,
    step: int,
    settings: Mapping[str, Any],
    limit: int | None,
    state: TrainingState,
) -> Path | None:
    """Save the state after `step`; every process calls it, the main process writes.

    A failure to write is reported; training continues, and older checkpoints stay.

    Args:
        settings: what a resumed run must have in common with this one.
        limit: how many checkpoints to keep, this one included; None for all.

    Returns:
        The checkpoint's folder, or None if it could not be written; the same on every process.
    """
    final = output_dir / f"checkpoint-{step}"
    partial = output_dir / f".checkpoint-{step}.partial"
    failure: Exception | None = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            with writing(partial):
                partial.mkdir(parents=True)
    except (UserError, OSError) as error:
        failure = error
    there = all_succeeded(accelerator, failure is None)  # or DeepSpeed's would wait for one another
    try:
        if there:
            with writing(partial):
                save_training_state(accelerator, partial, step, state)
                if accelerator.is_main_process:
                    _seal(partial, final, step, settings)
    except (UserError, OSError) as error:
        failure = error
        shutil.rmtree(partial, ignore_errors=True)
    if not there or not all_succeeded(accelerator, failure is None):
        reason = failure or "another process could not write it"
        log.warning("checkpoint of step %d was not saved, training continues: %s", step, reason)
        return None
    if accelerator.is_main_process and limit is not None:
        for old in checkpoints_in(output_dir)[limit:]:
            remove_checkpoint(old)
    accelerator.wait_for_everyone()
    return final


def all_succeeded(accelerator: Any, success: bool) -> bool:
    """Whether `success` is true on every process; each waits for the answer of all."""
    import torch

    if accelerator.num_processes == 1:
        return success
    failures = torch.tensor(float(not success), device=accelerator.device)
    return accelerator.reduce(failures, reduction="sum").item() == 0


def load_checkpoint(accelerator: Any, checkpoint: Path, state: TrainingState) -> None:
    """Put the state of a checkpoint back; every process calls it.

    Raises:
        UserError: the state does not belong to this run, or cannot be read.
    """
    step = load_training_state(accelerator, checkpoint, state)
    if step != read_settings(checkpoint)[0]:
        raise UserError(f"Cannot resume from {checkpoint}: its {STATE_FILE} is of step {step}.")


def _seal(partial: Path, final: Path, step: int, settings: Mapping[str, Any]) -> None:
    # DeepSpeed's state is in a separate folder.
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    prints = {path.relative_to(partial).as_posix(): _fingerprint(path) for path in files}
    record = Record(step, json.loads(json.dumps(dict(settings))), prints, "")
    content = {**vars(record), "digest": record.own_digest()}
    (partial / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    for path in (*files, partial / STATE):
        with open(path, "rb") as written:
            os.fsync(written.fileno())
    if final.exists() or final.is_symlink():
        if is_ours(final):
            remove_checkpoint(final)
        if final.exists() or final.is_symlink():  # somebody's own files
            set_aside(final)
    os.replace(partial, final)


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to resume from; with "latest" the newest that is whole, or None.

    Raises:
        UserError: a checkpoint named by its path is missing or damaged; with "latest", the newest
            was written by a version that pickled its state.
    """
    if wanted != "latest":
        path = _named(output_dir, wanted)
        fault = what_is_wrong(path)
        if fault:
            raise UserError(f"Cannot resume from {path}: {fault}.")
        return path
    for path in checkpoints_in(output_dir):
        fault = what_is_wrong(path)
        if fault is None:
            return path
        if _is_pickled(path):
            raise UserError(
                f"Cannot resume from {path}: {fault}. Finish that run with the version that began "
                "it, or choose another --output_dir."
            )
        log.warning("%s is damaged (%s); trying the one before it", path, fault)
    return None


def _named(output_dir: Path, wanted: str) -> Path:
    """The folder that a path names, from the working directory or else from the output folder."""
    path = Path(wanted)
    return output_dir / wanted if not path.is_dir() and (output_dir / wanted).is_dir() else path


def continues(output_dir: Path, wanted: str) -> bool:
    """Whether resuming from `wanted` continues the run in `output_dir`, rather than another one."""
    if wanted == "latest":
        return True
    return _named(output_dir, wanted).resolve().parent == output_dir.resolve()


def read_settings(checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """(step, settings) of a checkpoint.

    Raises:
        UserError: its state.json is missing or damaged.
    """
    record = read_json(checkpoint / STATE, Record)
    return record.step, record.settings


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in a few words; None if it can."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if _is_pickled(checkpoint):
        return "it was written by an older version, whose state is pickled and is not read any more"
    if not (checkpoint / STATE).is_file():
        return f"it has no {STATE}"
    try:
        record = read_json(checkpoint / STATE, Record)
        if record.digest != record.own_digest():
            return f"its {STATE} has changed since it was written"
    except (UserError, ValueError, RecursionError):
        return f"its {STATE} cannot be read"
    named = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    if record.step < 0 or (named and int(named[1]) != record.step):
        return f"its {STATE} is of step {record.step}"
    for name in (ADAPTER_FILE, STATE_FILE):
        if name not in record.files:
            return f"its {name} is missing"
    for name, fingerprint in record.files.items():
        path = _file_in(checkpoint, name)
        if path is None:
            return f"its {shortened(name)} is missing"
        if _fingerprint(path) != fingerprint:
            return f"its {shortened(name)} has changed since it was written"
    return None


def _file_in(checkpoint: Path, name: str) -> Path | None:
    """The file that a record names; None if there is none of that name inside the checkpoint."""
    path = checkpoint / name
    try:
        inside = path.resolve().is_relative_to(checkpoint.resolve())
        return path if inside and path.is_file() else None
    except (OSError, ValueError):  # no file can have such a name
        return None


def _is_pickled(checkpoint: Path) -> bool:
    """Whether a checkpoint has accelerate's pickles instead of our state file."""
    old = any((checkpoint / name).is_file() for name in ("optimizer.bin", "scheduler.bin"))
    return old and not (checkpoint / STATE_FILE).is_file()


# --- contents of the output folder --------------------------------------------------------------


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Checkpoint folders that this package wrote, newest first; others of such a name are left
    out."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d{1,18})", path.name)
        if match and is_ours(path):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def is_ours(folder: Path) -> bool:
    """Whether a folder `checkpoint-…` was made by a run of this package, by what is inside: other
    programs may call a file state.json too."""
    if folder.is_symlink() or not (folder / STATE).is_file():
        return False
    if (folder / STATE_FILE).is_file() or _is_pickled(folder):
        return True
    try:  # what a kill left of one that was being deleted
        return bool(read_json(folder / STATE, Record))
    except UserError:
        return False


def remove_checkpoint(folder: Path) -> None:
    """Delete what a run wrote into a checkpoint's folder, the mark last; the folder goes with it
    unless somebody keeps files of their own there."""
    try:
        names = list(read_json(folder / STATE, Record).files)
    except UserError:  # damaged, or cut short by a kill while it was deleted
        names = [ADAPTER_FILE, STATE_FILE]
    for name in names:
        if path := _file_in(folder, name):
            path.unlink()
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
    (folder / STATE).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def leave_branch(output_dir: Path, checkpoint: Path) -> None:
    """Resuming from a checkpoint that is not the newest: set the newer ones and the run's record
    aside, so that `latest` never resumes from the abandoned branch."""
    if not continues(output_dir, str(checkpoint)):
        return
    step = read_settings(checkpoint)[0]
    newer = [path for path in checkpoints_in(output_dir) if int(path.name[11:]) > step]
    for path in newer:
        set_aside(path)
    if newer and (output_dir / RUN_RECORD).is_file():
        set_aside(output_dir / RUN_RECORD)


def remove_leftovers(output_dir: Path) -> None:
    """Delete checkpoints that a killed run did not finish. Only for the holder of the folder's
    lock: no other run is writing there."""
    for path in output_dir.glob(".checkpoint-*.partial"):
        if re.fullmatch(r"\.checkpoint-\d+\.partial", path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _fingerprint(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
