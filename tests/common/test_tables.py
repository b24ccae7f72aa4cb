"""Tables in a terminal, as wide as it is."""

from __future__ import annotations

import pytest

from diffusekrona.common.tables import show_table

CELL = "0.206 [0.088, 0.377]"


def shown(capsys, head, rows, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    show_table("title", head, rows)
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_table_that_fits_is_shown_as_it_is(capsys, monkeypatch) -> None:
    lines = shown(capsys, ["", "one", "two"], [["a", 1, None]], 80, monkeypatch)
    assert lines[0] == "title" and lines[1].split() == ["one", "two"]
    assert lines[-1].split() == ["a", "1", "–"]


def test_few_wide_rows_become_columns(capsys, monkeypatch) -> None:
    head = ["", *(f"metric{n}" for n in range(8))]
    lines = shown(capsys, head, [["a", *[CELL] * 8], ["b", *[CELL] * 8]], 80, monkeypatch)
    assert lines[1].split() == ["a", "b"]
    assert lines[-1] == f"metric7   {CELL}   {CELL}" and max(map(len, lines)) <= 80


def test_what_is_too_wide_continues_below(capsys, monkeypatch) -> None:
    head = ["", *(f"metric{n}" for n in range(5))]
    lines = shown(capsys, head, [[f"row{n}", *[CELL] * 5] for n in range(9)], 80, monkeypatch)
    assert max(map(len, lines)) <= 80 and lines.count("title") == 1
    assert " ".join(lines).count(CELL) == 45 and " ".join(lines).count("row8") == 2
