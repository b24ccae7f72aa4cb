"""Labelled grids of pictures, and PNG files that carry the recipe they were made with."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..common.errors import UserError
from ..common.files import new_file, replace_whole
from ..common.json_files import parse_json
from ..common.own_files import SOFTWARE, keep_foreign
from ..common.pictures import opened

RECIPE_KEY = "diffusekrona"
_LEAST_CELL, _MOST_CELL = 160, 512
_TITLE_COLOUR, _LABEL_COLOUR = "#111111", "#333333"
# PIL's built-in font has ASCII and a few signs. What it lacks is first replaced by these, then
# looked for in a font of the system's, then stripped of accents or shown as a question mark.
_PLAIN = str.maketrans({"×": "x", "—": "-", "–": "-", "→": "->", "−": "-", "≤": "<=", "≥": ">="})
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "segoeui.ttf",
    "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "PingFang.ttc",
)  # fmt: skip
# The names under which image viewers and web UIs show these settings.
_SHOWN_AS = {
    "steps": "Steps",
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance": "CFG scale",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "model": "Model",
    "pretrained_model_name_or_path": "Model",
}


@dataclass(frozen=True)
class Grid:
    """Pictures in labelled rows and columns, for a page or as one picture.

    Attributes:
        rows: (label, pictures) of each row; None leaves a cell blank.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Image.Image | None, ...]], ...]

    def with_photos(self, photos: Sequence[Image.Image]) -> Grid:
        """The grid with the subject's photos in its first column, one per row, repeated in turn."""
        if not photos:
            return self
        rows = (
            (label, (photos[number % len(photos)], *pictures))
            for number, (label, pictures) in enumerate(self.rows)
        )
        return replace(self, columns=("photos", *self.columns), rows=tuple(rows))

    def image(self, cell: int | None = None) -> Image.Image:
        """The whole grid as one picture: see `labelled_grid`."""
        labels = [label for label, _ in self.rows]
        pictures = [pictures for _, pictures in self.rows]
        return labelled_grid(pictures, labels, self.columns, self.title, cell)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    cell: int | None = None,
) -> Image.Image:
    """Set pictures out in rows and columns on white, with labels.

    Args:
        rows: pictures of any size and mode; None, or a row that ends early, leaves a cell blank.
        row_labels: one for each row, on the left. Long labels are wrapped, then cut with "…".
        column_labels: one for each column, above it.
        title: above everything.
        cell: the longer side of a picture in the grid, in pixels. If not given, that of the
            typical picture, kept within 160 … 512 (small ones are enlarged a whole number of
            times). Proportions are kept.

    Returns:
        An RGB picture.

    Raises:
        ValueError: there are no pictures, or there are more labels than rows or columns.
    """
    count = max((len(row) for row in rows), default=0)
    pictures = [picture for row in rows for picture in row if picture is not None]
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    row_texts = _labels(row_labels, len(rows), "row")
    column_texts = _labels(column_labels, count, "column")
    if cell is None:
        cell = _comfortable_cell(pictures)

    fitted = [[picture and _fit(picture, cell) for picture in row] for row in rows]
    wide = max(picture.width for row in fitted for picture in row if picture)
    tall = [max((p.height for p in row if p), default=cell // 2) for row in fitted]
    gap, margin = max(4, cell // 32), max(12, cell // 12)
    size = min(max(13, round(cell / 13)), 28)

    beside = [
        _text(label, size, max(cell * 2 // 3, 110), max(1, height * 3 // (4 * size)))
        for label, height in zip(row_texts, tall, strict=True)
    ]
    above = [_text(label, size, wide, 4, centred=True) for label in column_texts]
    left = margin + max(block.width for block in beside)
    left += 2 * gap if left > margin else 0
    full = left + count * (wide + gap) - gap + margin
    heading = _text(title or "", round(size * 1.3), full - 2 * margin, 3, _TITLE_COLOUR)
    top = margin + (heading.height + 2 * gap if heading.height else 0)
    labels_end = top + max(block.height for block in above)
    first = labels_end + (gap if labels_end > top else 0)
    bottom = first + sum(tall) + (len(rows) - 1) * gap + margin

    sheet = Image.new("RGB", (full, bottom), "white")
    sheet.paste(heading, (margin, margin))
    for column, block in enumerate(above):
        x = left + column * (wide + gap) + (wide - block.width) // 2
        sheet.paste(block, (x, labels_end - block.height))
    y = first
    for row, block, height in zip(fitted, beside, tall, strict=True):
        sheet.paste(block, (margin, y + (height - block.height) // 2))
        for column, picture in enumerate(row):
            if picture:
                x = left + column * (wide + gap) + (wide - picture.width) // 2
                sheet.paste(picture, (x, y + (height - picture.height) // 2))
        y += height + gap
    return sheet


def _labels(labels: Sequence[str] | None, count: int, kind: str) -> list[str]:
    labels = list(labels or [])
    if len(labels) > count:
        raise ValueError(f"{len(labels)} {kind} labels for {count} {kind}s")
    return [str(label) for label in labels] + [""] * (count - len(labels))


def _comfortable_cell(pictures: Sequence[Image.Image]) -> int:
    side = int(median(max(picture.size) for picture in pictures))
    if side < _LEAST_CELL:
        return side * math.ceil(_LEAST_CELL / side)
    return min(side, _MOST_CELL)


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    """The picture as RGB, transparency on white, its longer side `cell` pixels."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


@lru_cache(maxsize=64)
def _font(size: int, name: str | None = None) -> Any:
    if name is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(character: str, name: str | None = None) -> bool:
    """Whether a font draws `character` otherwise than its sign for what it lacks."""
    font = _font(16, name)
    if font is None:
        return False
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=1024)
def _legible(text: str) -> tuple[str, str | None]:
    """`text` as it can be drawn, and the font that draws it (None: PIL's own)."""
    text = "".join(c for c in text if c.isspace() or not unicodedata.category(c).startswith("C"))
    text = " ".join(text.split())
    if all(map(_has, text)):
        return text, None
    text = "".join(c if _has(c) else c.translate(_PLAIN) for c in text)
    if all(map(_has, text)):
        return text, None
    for name in _SYSTEM_FONTS:
        if all(_has(c, name) for c in text):
            return text, name
    stripped = (c if _has(c) else unicodedata.normalize("NFKD", c)[0] for c in text)
    return "".join(c if _has(c) else "?" for c in stripped), None


def _text(
    text: str, size: int, width: int, most: int, colour: str = _LABEL_COLOUR, centred: bool = False
) -> Image.Image:
    """`text` on white, wrapped to `width` pixels and at most `most` lines; nothing: 0 × 0."""
    text, name = _legible(text)
    if not text:
        return Image.new("RGB", (0, 0))
    font = _font(size, name)
    lines = _wrap(text, font, width, most)
    leading = round(size * 1.3)
    block = Image.new("RGB", (max(_width(line, font) for line in lines), len(lines) * leading))
    block.paste("white", (0, 0, *block.size))
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        x = (block.width - _width(line, font)) / 2 if centred else 0
        draw.text((x, number * leading), line, colour, font)
    return block


def _width(text: str, font: Any) -> int:
    return math.ceil(font.getlength(text))


def _wrap(text: str, font: Any, width: int, most: int) -> list[str]:
    """Break `text` into at most `most` lines of at most `width` pixels, at spaces if it can."""
    lines: list[str] = []
    while text and len(lines) < most:
        end = len(text)
        if _width(text, font) > width:
            end = max(1, _fitting(text, font, width))
            if text[end : end + 1] != " " and " " in text[:end]:
                end = text.rindex(" ", 0, end)
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    if text:
        last = f"{lines[-1]} {text}"
        lines[-1] = last[: _fitting(last, font, width, "…")].rstrip() + "…"
    return lines


def _fitting(text: str, font: Any, width: int, ending: str = "") -> int:
    """How many leading characters of `text`, with `ending` after them, fit into `width` pixels."""
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _width(text[:middle] + ending, font) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def save_png(image: Image.Image, path: Path, recipe: dict[str, Any] | None = None) -> None:
    """Write a PNG file atomically, with the recipe that `read_recipe` gives back. A picture of
    another origin at `path` is set aside.

    The recipe goes in as JSON (text key `diffusekrona`; what JSON lacks becomes a string) and for
    people and web UIs as `parameters`. Missing folders are made.

    Raises:
        UserError: the disk is full or does not let `path` be written.
    """
    keep_foreign(path)
    with replace_whole(path) as temporary:
        image.save(temporary, "PNG", pnginfo=_text_chunks(recipe, SOFTWARE))


def save_new_png(image: Image.Image, path: Path, recipe: dict[str, Any] | None = None) -> Path:
    """As `save_png`, but under the next free name if `path` is taken; returns the file's path."""
    with new_file(path) as (temporary, final):
        image.save(temporary, "PNG", pnginfo=_text_chunks(recipe))
    return final[0]


def _text_chunks(recipe: dict[str, Any] | None, more: Mapping[str, str] | None = None) -> PngInfo:
    info = PngInfo()
    for key, text in (more or {}).items():
        info.add_text(key, text)
    if recipe is not None:
        info.add_text(RECIPE_KEY, json.dumps(recipe, default=str))
        info.add_text("parameters", _parameters(recipe))
    return info


def _parameters(recipe: dict[str, Any]) -> str:
    rest = {_SHOWN_AS.get(key, key): value for key, value in recipe.items() if value is not None}
    lines = [str(rest.pop("prompt", ""))]
    if negative := rest.pop("negative_prompt", None):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {value}" for key, value in rest.items()))
    return "\n".join(line for line in lines if line)


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe in a PNG that `save_png` wrote; None if the picture has none that can be read.

    Raises:
        UserError: the file is missing or is not a picture.
    """
    try:
        with opened(Path(path)) as image:
            text = image.info.get(RECIPE_KEY)
    except FileNotFoundError:
        raise UserError(f"no picture {path}") from None
    except Exception as error:  # Pillow meets damaged files with errors of many kinds
        raise UserError(f"{path} is not a picture that can be read") from error
    try:
        return parse_json(text, dict[str, Any]) if isinstance(text, str) else None
    except ValueError:
        return None
