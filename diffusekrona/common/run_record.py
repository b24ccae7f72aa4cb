"""The files that a run leaves: their names, and what is read again of its records."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import FiniteFloat

from .errors import UserError
from .json_files import read_json

RUN_RECORD, RUN_SETTINGS, TRAIN_LOG = "run.json", "run.yaml", "train_log.jsonl"
STATE_FILE = "training_state.safetensors"  # of a checkpoint, beside its adapter
Count = Annotated[int, Ge(0)]


@dataclass
class RunRecord:
    """The fields of `run.json` that are read again; it holds more, for people.

    Attributes:
        steps: that were trained; fixed_settings: what a resumed run must share with it.
        stopped_early: whether `--early_stop` ended it before the steps asked for.
    """

    steps: Count | None = None
    stopped_early: bool = False
    fixed_settings: dict[str, Any] = field(default_factory=dict)
    trained_parameters: Count | None = None
    adapter_bytes: Count | None = None
    last_loss: FiniteFloat | None = None
    seconds_training: FiniteFloat | None = None
    peak_memory: str | None = None
    device: str | None = None
    relative_norms: dict[str, FiniteFloat | str] | None = None


@dataclass
class LogLine:
    """What is read again of a line of train_log.jsonl."""

    step: int
    loss: FiniteFloat


def read_run_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    if not os.path.isfile(folder / RUN_RECORD):
        return None
    return read_json(folder / RUN_RECORD, RunRecord)


def read_run_record_or_none(folder: Path) -> RunRecord | None:
    """As `read_run_record`, for those who can do without a damaged one."""
    try:
        return read_run_record(folder)
    except UserError:
        return None
