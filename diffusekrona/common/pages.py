"""Pages: a jinja2 template rendered into one HTML file that holds everything it shows.

A page needs no network, no scripts and no files beside it. Its template is beside the module that
fills it and extends `common/templates/layout.html`; `common/templates/parts.html` has the tables,
charts and pictures that pages share. Whatever is put into a template is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Environment

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # head and rows
Cell = tuple[Image.Image | None, str]  # a picture (None: blank) and the small print under it


def render(template: str, **values: Any) -> str:
    """A whole page.

    Args:
        template: its path inside the package, such as "study/page.html".
        values: what it shows. `title` and `lead` belong to every page.
    """
    from .. import __version__

    return _environment().get_template(template).render(version=__version__, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[Any], Any]] = {
        "number_columns": number_columns,
        "picture_uri": picture_uri,
        "without_words": lambda rows: [(label, [(p, "") for p in row]) for label, row in rows],
        "png_uri": lambda data: _uri(data, "png"),
    }
    environment.filters.update(filters)
    return environment


def number_columns(table: Table) -> list[bool]:
    """Which columns of a table hold numbers, and so are set flush right; the first never does."""
    head, rows = table
    return [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(head))]


def _is_number(cell: Any) -> bool:
    text = "" if cell is None else str(cell)
    return text in ("–", "") or text.lstrip("+-−±~<>= ")[:1].isdigit()


def picture_uri(image: Image.Image, side: int | None = None) -> str:
    """A picture as a data URI, made smaller to at most `side` pixels.

    Small pictures are PNG, exactly; large ones JPEG, or the page would be huge.
    """
    image = image.convert("RGB")
    if side and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= 96 * 96:
        image.save(buffer, "PNG", optimize=True)
        return _uri(buffer.getvalue(), "png")
    image.save(buffer, "JPEG", quality=88)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
