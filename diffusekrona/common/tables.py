"""Tables in the terminal, in Markdown and as CSV, from the same head and rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def show_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], marked: Sequence[int] = ()
) -> None:
    """Print a table; every column but the first is flush right. `marked` rows are bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE, title_justify="left", title_style="bold")
    for number, name in enumerate(head):
        table.add_column(Text(str(name)), justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(rows):
        cells = (Text("–" if cell is None else str(cell)) for cell in row)
        table.add_row(*cells, style="bold green" if number in marked else None)
    Console().print(table)


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
