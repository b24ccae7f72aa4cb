"""Pieces of HTML for the page, from the templates beside this file. All text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.pages import render
from .form import without_flags
from .server import address_of

_WIDTH, _HEIGHT, _MARGIN = 320, 90, 4
_MOST_POINTS = 300


def view(template: str, **values: Any) -> str:
    """A template of this folder, filled. What Gradio's own templates would read is escaped too."""
    text = render(f"ui/{template}.html", address_of=address_of, **values)
    return text.replace("{{", "&#123;&#123;").replace("${", "&#36;{")


def say(
    *,
    mistakes: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> str:
    """Mistakes, facts and a note; nothing if there are none. Flags become labels of fields."""
    if not (mistakes or facts or note):
        return ""
    mistakes = [without_flags(line) for line in mistakes]
    return view("facts", mistakes=mistakes, facts=facts, note=note)


def curve(points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """A curve for an SVG: its points, smallest and largest value, last value."""
    every = max(1, len(points) // _MOST_POINTS)
    means = [
        (piece[-1][0], sum(value for _, value in piece) / len(piece))
        for piece in (points[i : i + every] for i in range(0, len(points), every))
    ]
    low, high = min(v for _, v in means), max(v for _, v in means)
    first, last = means[0][0], means[-1][0]
    across = (_WIDTH - 2 * _MARGIN) / max(1, last - first)
    up = (_HEIGHT - 2 * _MARGIN) / ((high - low) or 1)
    path = " ".join(
        f"{_MARGIN + (step - first) * across:.1f},{_HEIGHT - _MARGIN - (value - low) * up:.1f}"
        for step, value in means
    )
    return {
        "points": path,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": f"{points[-1][1]:.4g}",
        "first_step": first,
        "last_step": last,
        "width": _WIDTH,
        "height": _HEIGHT,
    }
