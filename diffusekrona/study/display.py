"""One progress display for a whole study: a bar of cells, what runs now, what has failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..common.json_files import parse_json
from ..common.run_record import TRAIN_LOG, LogLine
from .cell import LOG, Cell
from .engines import RUNNING, Outcome

_MOST_SHOWN = 8
_TAIL = 4096  # bytes of a training log that surely hold its last line


class Display:
    """Shows itself while in use; without a terminal it prints one line per cell instead.

    Attributes:
        failed: (title, error) of the cells that failed.
    """

    def __init__(self, cells: Sequence[Cell], left: Sequence[Cell], root: Path) -> None:
        self.left, self.root = {cell.key(): cell for cell in left}, root
        self.failed: list[tuple[str, str]] = []
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self.task = self.progress.add_task("", total=len(cells), completed=len(cells) - len(left))
        self.live = Live(
            get_renderable=self._render, console=self.console, refresh_per_second=1, transient=True
        )
        self.started = time.time()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def on_outcome(self, outcome: Outcome) -> None:
        """Report that a cell has ended."""
        cell = outcome.cell
        self.left.pop(cell.key(), None)
        self.progress.advance(self.task)
        state = self.progress.tasks[0]
        line = f"{state.completed:.0f}/{state.total:.0f} {cell.title()}"
        if outcome.error:
            self.failed.append((cell.title(), f"{outcome.error} ({cell.folder(self.root) / LOG})"))
            line += f": FAILED, {outcome.error}"
        if outcome.error or not self.console.is_terminal:
            seconds = time.time() - self.started
            self.console.print(Text(f"[{seconds:.0f} s] {line}"), soft_wrap=True)

    def _render(self) -> Group:
        lines = []
        for cell in list(self.left.values()):  # in the display's thread; outcomes remove from it
            if len(lines) < _MOST_SHOWN and (cell.folder(self.root) / RUNNING).exists():
                lines.append(f"  {cell.title()}: {_what(cell, self.root)}")
        return Group(self.progress.get_renderable(), Text("\n".join(lines)))


def _what(cell: Cell, root: Path) -> str:
    """What a running cell is at, from the files that it leaves."""
    pictures = len(list(cell.scored(root).glob("pictures/*/*.png")))
    if pictures:
        return f"{pictures} pictures"
    try:
        with open(cell.folder(root) / "run" / TRAIN_LOG, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            last = parse_json(file.read().splitlines()[-1], LogLine)
        return f"training, step {last.step}"
    except (OSError, ValueError, IndexError):
        return "starting"
