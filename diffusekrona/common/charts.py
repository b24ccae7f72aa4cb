"""Charts: empty matplotlib figures in the pages' style, and figures as PNG files for them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .own_files import SOFTWARE

COLOURS = ("#3566b8", "#d9822b", "#3a9a5b", "#b4428f", "#7a6cc4", "#8a8f98", "#1b9aaa", "#c4543a")
_MARKERS = "osD^vPX*"
GREY = "#7d8694"  # legible on white and on black
_DARK, _LIGHT = "#1c2128", "#d5dbe3"  # background and ink of a chart on a dark page
_DPI = 192  # twice the resolution at which a page shows it
_MARGIN = 0.1  # inches


@dataclass(frozen=True)
class Chart:
    """A figure on a page: PNG files for light and dark pages, its width there, what it says."""

    light: bytes
    dark: bytes
    width: int
    caption: str


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def literal(text: str) -> str:
    """A name as matplotlib shows it unchanged: it would take text between two $ as a formula."""
    return text.replace("$", r"\$")


def new_chart(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """An empty matplotlib figure (inches) and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def chart(figure: Any, caption: str = "") -> Chart:
    """A figure for a page. Its ink is light afterwards: save the file beside the page before."""
    from PIL import Image

    figure.draw_without_rendering()  # lays it out, once: other colours move nothing
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(_MARGIN)
    light = chart_png(figure, box=box)
    for text in _written(figure):
        text.set_color(_LIGHT)
    for axis in figure.axes:
        axis.set_facecolor(_DARK)
        axis.tick_params(which="both", color=_LIGHT, labelcolor=_LIGHT)
        for spine in axis.spines.values():
            spine.set_edgecolor(_LIGHT)
    dark = chart_png(figure, _DARK, box)
    return Chart(light, dark, Image.open(io.BytesIO(light)).width // 2, caption)


def _written(figure: Any) -> Iterator[Any]:
    """Titles, axis labels and legends; not what is written inside a chart, which suits its place
    on light and dark pages alike."""
    if figure._suptitle is not None:
        yield figure._suptitle
    for axis in figure.axes:
        yield from (axis.title, axis.xaxis.label, axis.yaxis.label)
        yield from axis.get_legend().get_texts() if axis.get_legend() else ()
    yield from (text for legend in figure.legends for text in legend.get_texts())


def chart_png(figure: Any, background: str = "white", box: Any = "tight") -> bytes:
    """A figure, or the part of it in a box (inches), as a PNG file."""
    options = {"bbox_inches": box, "pad_inches": _MARGIN, "facecolor": background}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata=SOFTWARE, **options)
    return buffer.getvalue()
