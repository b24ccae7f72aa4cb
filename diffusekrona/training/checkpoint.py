"""The training state: saved whole or not at all, checked before it is trusted, resumed exactly.

A checkpoint is a folder `checkpoint-<step>` of accelerate's state (optimizer, schedules, scaler,
RNG), the adapter as an ordinary `adapter.safetensors`, and `state.json`, written last, with the
size and hash of every file. It is filled under a temporary name, flushed and renamed. The order of
the data and all noise are pure functions of (seed, step), so the step number restores them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from torch import nn

from ..adapters.file import read_adapter, save_adapter
from ..common.errors import UserError, writing

log = logging.getLogger(__name__)

STATE = "state.json"
ADAPTER = "adapter.safetensors"
RUN_RECORD = "run.json"


def keep_only_adapters(
    accelerator: Any,
    models: Mapping[str, nn.Module],
    origin: Mapping[str, Any],
    adapter_name: str = "default",
) -> None:
    """Have accelerate's state hold the adapters, not the frozen base.

    Args:
        models: component name to unwrapped model, those that carry the adapter.
        origin: metadata of the adapter's file, so that inference knows its base and prompt.
    """

    def save(_models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_adapter(models, Path(folder) / ADAPTER, adapter_name, metadata=origin)

    def load(wrapped: list[Any], folder: str) -> None:
        wrapped.clear()
        adapter = read_adapter(Path(folder) / ADAPTER)
        for component, model in models.items():
            tensors = adapter.component_tensors(component)
            set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(
    accelerator: Any, output_dir: Path, step: int, settings: Mapping[str, Any], limit: int | None
) -> Path | None:
    """Save the state after `step`; every process calls it.

    A disk that refuses is told and survived: training goes on, and older checkpoints stay.

    Args:
        settings: what a resumed run must have in common with this one.
        limit: how many checkpoints to keep, this one included; None for all.

    Returns:
        The checkpoint's folder, or None if it could not be written.
    """
    final = output_dir / f"checkpoint-{step}"
    partial = output_dir / f".checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with writing(partial):
            partial.mkdir(parents=True, exist_ok=True)
            accelerator.save_state(str(partial), **_of_adapters_alone(accelerator, "save"))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _seal(partial, final, step, settings)
    except (UserError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        log.warning("checkpoint of step %d was not saved, training goes on: %s", step, error)
        return None
    if accelerator.is_main_process and limit is not None:
        for old in _checkpoints(output_dir)[limit:]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Any, checkpoint: Path) -> None:
    """Put the state of a checkpoint back; every process calls it."""
    accelerator.load_state(str(checkpoint), **_of_adapters_alone(accelerator, "load"))


def _of_adapters_alone(accelerator: Any, doing: str) -> dict[str, bool]:
    """What tells DeepSpeed, which goes past `keep_only_adapters`, to leave the frozen base out."""
    if accelerator.distributed_type != "DEEPSPEED":
        return {}
    return {"save": {"exclude_frozen_parameters": True}, "load": {"load_module_strict": False}}[
        doing
    ]


def _seal(partial: Path, final: Path, step: int, settings: Mapping[str, Any]) -> None:
    # DeepSpeed's state lies in a folder of its own.
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    prints = {path.relative_to(partial).as_posix(): _fingerprint(path) for path in files}
    state = {"step": step, "settings": dict(settings), "files": prints}
    (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for path in (*files, partial / STATE):
        with open(path, "rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from; with "latest" the newest that is whole, or None.

    Raises:
        UserError: a checkpoint named by its path is missing or damaged.
    """
    if wanted != "latest":
        path = Path(wanted).expanduser()
        if not path.is_dir() and (output_dir / wanted).is_dir():
            path = output_dir / wanted
        fault = what_is_wrong(path)
        if fault:
            raise UserError(f"Cannot resume from {path}: {fault}.")
        return path
    for path in _checkpoints(output_dir):
        fault = what_is_wrong(path)
        if fault is None:
            return path
        log.warning("%s is damaged (%s); trying the one before it", path, fault)
    return None


def read_settings(checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """(step, settings) of a checkpoint."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return int(state["step"]), state["settings"]


def check_settings(where: Path, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to go on with settings under which the run would not be the same one.

    Args:
        where: the checkpoint or run, for the message.

    Raises:
        UserError: naming the first setting that differs, and both its values.
    """
    for name, value in settings.items():
        if name in saved and saved[name] != json.loads(json.dumps(value)):
            raise UserError(
                f"{where} was trained with {name} = {saved[name]}, this run has {value}: "
                "use the same, another --output_dir, or --overwrite_output_dir."
            )


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in a few words; None if it can."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        files, _ = dict(state["files"]), int(state["step"])
    except FileNotFoundError:
        return f"it has no {STATE}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE} cannot be read"
    for name, fingerprint in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"its {name} is missing"
        if _fingerprint(path) != fingerprint:
            return f"its {name} is not as it was written"
    return None


def _checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def _fingerprint(path: Path) -> list[Any]:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
