"""Stand-ins for a cell's work, for tests of the engines; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from diffusekrona.study.cell import Cell
from diffusekrona.study.engines import RUNNING


def start_worker(*_arguments: object) -> None:
    """In place of the engine's own: its process needs no torch."""


def work(cell: Cell, root: Path) -> str | None:
    """Notes each try; the cells' labels say what befalls them."""
    folder = cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNNING).write_text(str(os.getpid()))
    tries = folder / "tries"
    count = len(tries.read_text()) + 1 if tries.exists() else 1
    tries.write_text("x" * count)
    if ("killed once" in cell.labels and count == 1) or "always killed" in cell.labels:
        os.kill(os.getpid(), signal.SIGKILL)
    if "slow" in cell.labels:
        time.sleep(1.5)
    (folder / RUNNING).unlink()
    return "it was meant to" if "fails" in cell.labels else None
