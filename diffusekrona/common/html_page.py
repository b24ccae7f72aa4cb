"""One HTML page that holds everything it shows: no network, no files beside it, no scripts.

Every function returns a piece of HTML; text that comes in is escaped, pieces are joined by `page`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1b1f24;
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
header { background: #1f2a44; color: #fff; padding: 28px max(24px, calc(50vw - 600px)) 22px; }
header h1 { margin: 0 0 6px; font-size: 26px; font-weight: 650; }
header p { margin: 0; color: #cdd5e5; max-width: 90ch; }
main { max-width: 1200px; margin: 0 auto; padding: 20px 24px 48px; }
section { background: #fff; border: 1px solid #dfe3ea; border-radius: 10px;
  padding: 18px 22px; margin: 0 0 18px; overflow-x: auto; }
h2 { margin: 0 0 10px; font-size: 19px; }
h3 { margin: 18px 0 6px; font-size: 15px; }
p { margin: 0 0 10px; max-width: 95ch; }
p.note { color: #57606f; font-size: 13.5px; }
p.warn { background: #fff6e0; border-left: 4px solid #e3a008; padding: 8px 12px; max-width: none; }
table { border-collapse: collapse; font-size: 14px; margin: 4px 0 12px; }
caption { text-align: left; color: #57606f; font-size: 13px; padding: 2px 0 6px; }
th, td { padding: 5px 12px; border-bottom: 1px solid #e8ebf0; text-align: left;
  vertical-align: middle; }
th { background: #f2f4f8; font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.marked td { background: #e9f5ec; font-weight: 600; }
small { color: #6b7482; }
figure { margin: 0 0 12px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #57606f; font-size: 13px; margin-top: 4px; }
.row { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
table.pictures td { padding: 4px; text-align: center; border: 0; vertical-align: top; }
table.pictures th { font-weight: 500; white-space: normal; max-width: 190px; }
table.pictures small { display: block; font-size: 11.5px; line-height: 1.35; }
summary { cursor: pointer; color: #2b4c9b; margin: 4px 0 8px; }
footer { color: #6b7482; font-size: 13px; padding: 0 24px 30px; text-align: center; }
"""


def page(title: str, lead: str, sections: Sequence[str], foot: str = "") -> str:
    """The whole page.

    Args:
        title, lead, foot: text.
        sections: pieces made by `section`.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<header><h1>{text(title)}</h1><p>{text(lead)}</p></header>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main><footer>{text(foot)}</footer></body></html>\n"
    )


def text(value: Any) -> str:
    """Text with everything escaped that HTML would read."""
    return html.escape(str(value), quote=True)


def section(title: str, *pieces: str) -> str:
    """A titled box of pieces."""
    return f"<section><h2>{text(title)}</h2>\n" + "\n".join(pieces) + "</section>"


def heading(title: str) -> str:
    """A heading inside a section."""
    return f"<h3>{text(title)}</h3>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph; `kind` is "note" for small print, "warn" for what the reader must not miss."""
    return f'<p class="{text(kind)}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def folded(summary: str, *pieces: str) -> str:
    """Pieces that show only when their summary is clicked."""
    return f"<details><summary>{text(summary)}</summary>" + "\n".join(pieces) + "</details>"


def side_by_side(*pieces: str) -> str:
    """Pieces beside each other where the window is wide enough."""
    return '<div class="row">' + "\n".join(pieces) + "</div>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    marked: Sequence[int] = (),
) -> str:
    """A table; columns whose cells look like numbers, but the first, are set flush right.

    Args:
        head: column titles.
        rows: cells, by str(); None is shown as a dash.
        marked: rows, by number, that stand out.
    """
    shown = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    numeric = [i > 0 and all(_is_number(row[i]) for row in shown) for i in range(len(head))]
    classes = [' class="n"' if n else "" for n in numeric]
    top = "".join(f"<th{c}>{text(h)}</th>" for h, c in zip(head, classes, strict=True))
    body = []
    for number, row in enumerate(shown):
        cells = "".join(f"<td{c}>{text(v)}</td>" for v, c in zip(row, classes, strict=True))
        start = '<tr class="marked">' if number in marked else "<tr>"
        body.append(f"{start}{cells}</tr>")
    above = f"<caption>{text(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _is_number(cell: str) -> bool:
    return cell in ("–", "") or cell.lstrip("+-−±~<>= ")[:1].isdigit()


def picture(image: Image.Image, caption: str = "", width: int | None = None) -> str:
    """A picture, embedded; `width` is that on the page, in pixels."""
    return _figure(_embedded(image), caption, width, alt=caption or "picture")


def chart(figure: Any, caption: str = "") -> str:
    """A matplotlib figure, embedded at twice the resolution it is shown at."""
    png = chart_png(figure)
    width = Image.open(io.BytesIO(png)).width // 2
    return _figure(_uri(png, "png"), caption, width, alt=caption or "chart")


def chart_png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file, at twice the resolution it is shown at."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=192, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def new_chart(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """An empty matplotlib figure (inches) and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def pictures_table(
    corner: str,
    column_labels: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[Image.Image | None, str]]]],
    width: int = 128,
) -> str:
    """Pictures with small print under each, in labelled rows and columns.

    Args:
        rows: (label, cells), a cell being a picture (None: blank) and its small print.
        width: of each picture on the page, in pixels; larger ones are made smaller before.
    """
    labels = (corner, *column_labels)
    top = "".join(f"<th>{text(label)}</th>" for label in labels) if any(labels) else ""
    body = []
    for label, cells in rows:
        row = f"<th>{text(label)}</th>" if label else ""
        for image, words in cells:
            row += "<td>"
            if image is not None:
                source = _embedded(_at_most(image, 2 * width))
                row += f'<img src="{source}" width="{width}" alt="{text(label)}">'
            row += f"<small>{text(words)}</small></td>" if words else "</td>"
        body.append(f"<tr>{row}</tr>")
    head = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<table class="pictures">{head}<tbody>{"".join(body)}</tbody></table>'


def _at_most(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _figure(source: str, caption: str, width: int | None, alt: str) -> str:
    size = f' width="{width}"' if width else ""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}"{size} alt="{text(alt)}">{below}</figure>'


def _embedded(image: Image.Image) -> str:
    """Small pictures as PNG, exactly; large ones as JPEG, or the page would be huge."""
    buffer = io.BytesIO()
    if image.width * image.height <= 96 * 96:
        image.convert("RGB").save(buffer, "PNG", optimize=True)
        return _uri(buffer.getvalue(), "png")
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
