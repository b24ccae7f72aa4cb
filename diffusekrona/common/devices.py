"""The device that a program computes on, and the processes that share its work."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import UserError, reason_of

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

log = logging.getLogger("diffusekrona")

TIMEOUT = datetime.timedelta(hours=1)  # of a process that waits for another
HEARTBEAT = 60.0  # seconds between the signs of life of one that works alone


def has_bf16() -> bool:
    """Whether the GPU computes in bf16 by itself; True without one. Others imitate it, slowly."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def process_state(device: str | None) -> PartialState:
    """accelerate's account of the processes, for a program that draws on `device` (None: its own).

    On a machine without an accelerator it must be configured for CPU processes: else each of
    them would believe that it is alone, and do all of the work.
    """
    import torch
    from accelerate import PartialState

    there_is_one = torch.cuda.is_available() or torch.accelerator.is_available()
    return PartialState(cpu=device == "cpu" or not there_is_one, timeout=TIMEOUT)


@contextmanager
def main_works_alone(state: Any, what: str) -> Generator[None]:
    """While the block runs on the main process the others, which have nothing to do in it, wait at
    its end, for as long as it takes: every minute the main one tells them, and the log, that it is
    at work, so neither their time limit ends the run nor does anyone take it for dead.

    Args:
        state: accelerate's Accelerator or PartialState.
        what: what it does, such as "validation pictures".
    """
    if not state.is_main_process:
        yield
        while from_main(state, False):
            pass
        return
    over, began = threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            log.info("%s: at work for %.0f min", what, (time.monotonic() - began) / 60)
            from_main(state, True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        from_main(state, False)


def from_main(state: Any, answer: bool) -> bool:
    """The main process's answer, on every process."""
    if state.num_processes == 1:
        return answer
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([answer])[0]


def choose_device(name: str | None, default: torch.device) -> torch.device:
    """Raises UserError for a device that this machine does not have."""
    import torch

    try:
        device = torch.device(name) if name else default
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    return device
