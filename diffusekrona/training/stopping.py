"""Why a run stops before its end: signals, a reader of its output that left, other processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ..common.streams import discard, on_broken_pipe

log = logging.getLogger("diffusekrona")

SIGPIPE = 13  # Windows has no such signal


@contextmanager
def stop_signals() -> Generator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that the loop can save and leave; a second SIGINT or
    SIGTERM ends at once. A reader of the output that has gone (`… 2>&1 | head`) counts as SIGPIPE.
    """
    caught: list[int] = []
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def note(number: int, _frame: Any) -> None:
        if number == hang_up:  # the terminal is gone: what writes to it would fail
            for terminal in terminals:
                discard(terminal)
        elif caught:
            raise KeyboardInterrupt
        caught.append(number)
        log.warning("signal received: saving after this step (press again to stop at once)")

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # as nohup sets it
        wanted.append(hang_up)
    old = {number: signal.signal(number, note) for number in wanted}
    try:
        with on_broken_pipe(lambda: caught.append(SIGPIPE)):
            yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Vote:
    """What any process wants to be done after this step: they must all do it at the same step.

    With several processes the answer is that of the step before, so that none waits for this one.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """For each request, whether any process made it; given in the same order every time."""
        if self.accelerator.num_processes == 1:
            return wishes
        flags = torch.tensor([float(wish) for wish in wishes], device=self.accelerator.device)
        before = self.pending
        self.pending = send_to_host(self.accelerator.reduce(flags, reduction="sum"))
        if before is None:
            return (False,) * len(wishes)
        votes, copied = before
        if copied is not None:
            copied.synchronize()
        return tuple(count > 0 for count in votes.tolist())


def send_to_host(number: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy of `number` on its way to the host, and the CUDA event that marks its arrival.

    `number.item()` would wait for all that the device was given since, the next step included.
    """
    copy = number.detach().to("cpu", non_blocking=True)  # into pinned memory
    if not number.is_cuda:
        return copy, None
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied
