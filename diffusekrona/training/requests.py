"""What a person asks of a run while it trains: to save a checkpoint now, to draw now.

By signal, SIGUSR1 to save and SIGUSR2 to draw, or by a file in the run's folder, `save_now` or
`draw_now`, which is removed when it is seen. The file also reaches a run of several processes,
whose launcher a signal would end.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("diffusekrona")

SAVE_NOW, DRAW_NOW = "save_now", "draw_now"
SIGNALS = {"SIGUSR1": SAVE_NOW, "SIGUSR2": DRAW_NOW}  # Windows has neither


class Requests:
    """What was asked for since it was last looked at."""

    def __init__(self, folder: Path, is_main_process: bool, can_draw: bool) -> None:
        """
        Args:
            folder: the run's; only the main process looks into it.
            can_draw: whether there are prompts to draw.
        """
        self.folder, self.is_main_process, self.can_draw = folder, is_main_process, can_draw
        self.signalled: set[str] = set()

    def take(self) -> tuple[bool, bool]:
        """Whether to save a checkpoint, and whether to draw, after this step."""
        save, draw = self._asked(SAVE_NOW), self._asked(DRAW_NOW)
        if draw and not self.can_draw:
            log.warning("%s: the run has no --validation_prompt to draw", DRAW_NOW)
        return save, draw and self.can_draw

    def _asked(self, name: str) -> bool:
        signalled = name in self.signalled
        self.signalled.discard(name)
        return self._remove(name) or signalled

    def _remove(self, name: str) -> bool:
        """Whether the file was there; it is no longer."""
        path = self.folder / name
        if not self.is_main_process or not os.path.lexists(path):
            return False
        try:
            path.unlink()
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error.strerror)
            self.is_main_process = False  # or every step would obey it
        return True

    def forget(self) -> None:
        """Remove the files of requests that came too late, so that they are not the next run's."""
        self._remove(SAVE_NOW)
        self._remove(DRAW_NOW)


@contextmanager
def listening(folder: Path, is_main_process: bool, can_draw: bool) -> Generator[Requests]:
    """Collect requests, from the start of the program on: by default SIGUSR1 would end it."""
    requests = Requests(folder, is_main_process, can_draw)
    names = {getattr(signal, name): what for name, what in SIGNALS.items() if hasattr(signal, name)}

    def note(number: int, _frame: Any) -> None:
        requests.signalled.add(names[number])

    old = {number: signal.signal(number, note) for number in names}
    try:
        yield requests
    finally:
        requests.forget()
        for number, handler in old.items():
            signal.signal(number, handler)


def ask(folder: Path, name: str) -> None:
    """Ask the run in `folder` for SAVE_NOW or DRAW_NOW. Raises OSError."""
    (folder / name).touch()
