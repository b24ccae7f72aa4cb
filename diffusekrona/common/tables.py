"""Tables in the terminal, in Markdown and as CSV, from the same head and rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def show_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], marked: Sequence[int] = ()
) -> None:
    """Print a table; every column but the first is flush right. `marked` rows are bold.

    One that is wider than the terminal is turned, so that its columns become rows, where that
    makes it narrower, and what is still too wide continues below.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[str(name) for name in head]]
    cells += [["–" if cell is None else str(cell) for cell in row] for row in rows]
    bold = [[number - 1 in marked for _ in head] for number in range(len(cells))]
    if _width(cells) > console.width and len(rows) < len(head):
        cells, bold = ([list(line) for line in zip(*lines, strict=True)] for lines in (cells, bold))
    for part, columns in enumerate(_fitting(cells, console.width)):
        heading = None if part else Text(title)
        table = Table(title=heading, box=box.SIMPLE, title_justify="left", title_style="bold")
        for number in columns:
            side = "right" if number else "left"
            table.add_column(Text(cells[0][number]), justify=side, overflow="fold")
        for line, strong in zip(cells[1:], bold[1:], strict=True):
            styles = ("bold green" if strong[number] else "" for number in columns)
            table.add_row(*map(Text, (line[number] for number in columns), styles))
        console.print(table)


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]


def _width(cells: Sequence[Sequence[str]]) -> int:
    return sum(_widths(cells)) + 2


def _fitting(cells: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns by number, in groups that fit; the first column begins each of them."""
    first, *others = _widths(cells)
    groups: list[list[int]] = []
    left = 0
    for number, own in enumerate(others, 1):
        if own > left:
            groups.append([0])
            left = width - first - 2
        groups[-1].append(number)
        left -= own
    return groups or [[0]]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; every column but the first is flush right."""

    def line(cells: Sequence[Any]) -> str:
        shown = ("–" if c is None else str(c).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(shown) + " |\n"

    return line(head) + line(["---", *["---:"] * (len(head) - 1)]) + "".join(map(line, rows))


def csv_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated values; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return buffer.getvalue()
