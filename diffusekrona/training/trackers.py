"""TensorBoard, wandb and the like: a tracker that fails costs its curves, not the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..common.errors import reason_of

log = logging.getLogger("diffusekrona")


def log_to_trackers(accelerator: Any, values: Mapping[str, float], step: int) -> None:
    """Values of a step, in every tracker."""
    _or_without(accelerator, lambda: accelerator.log(dict(values), step=step))


def end_trackers(accelerator: Any) -> None:
    """Close the trackers, and the process group."""
    if not _or_without(accelerator, accelerator.end_training):
        accelerator.end_training()  # none is left


def _or_without(accelerator: Any, show: Callable[[], object]) -> bool:
    """Whether `show` worked; if not, as on a full disk, the run goes on without trackers."""
    try:
        show()
    except Exception as error:  # every tracker fails in its own way
        log.warning("nothing more is shown in the trackers: %s", reason_of(error))
        accelerator.trackers.clear()
        return False
    return True
