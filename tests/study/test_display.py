"""The progress display of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from diffusekrona.study.cell import Cell
from diffusekrona.study.display import Display
from diffusekrona.study.engines import Outcome


class EndsWhileShown:
    """A cell that ends while its line is being made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.display: Display | None = None

    def key(self) -> str:
        return self.name

    def title(self) -> str:
        return self.name

    def folder(self, root: Path) -> Path:
        if self.display:
            self.display.on_outcome(Outcome(cast(Cell, self)))
        return root / self.name


def test_cells_may_end_while_they_are_shown(tmp_path: Path) -> None:
    cells: list[Any] = [EndsWhileShown(name) for name in "ab"]
    display = Display(cells, cells, tmp_path)
    for cell in cells:
        cell.display = display
    display._render()
    assert not display.left and not display.failed
