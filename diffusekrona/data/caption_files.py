"""Caption files: beside each picture, or one for the whole folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..common.errors import UserError
from ..common.json_files import parse_json
from ..common.text_files import MOST_METADATA, read_text

CAPTION_SUFFIXES = (".txt", ".caption", ".jsonl")
_TEXT_KEYS = ("text", "caption", "prompt")


def read_captions(folder: Path, pictures: Sequence[Path], prompt: str | None) -> list[str]:
    """One caption for each picture: its lines, as `caption_lines` has them, in one.

    Raises:
        UserError: as `read_metadata` and `caption_lines` have it.
    """
    table = read_metadata(folder / "metadata.jsonl")
    return [" ".join(caption_lines(picture, table, prompt)) for picture in pictures]


def caption_lines(
    picture: Path, table: Mapping[str, str], prompt: str | None, extension: str | None = None
) -> list[str]:
    """A picture's caption, line by line.

    `image.txt` or `image.caption` beside `image.jpg` comes first, then the picture's line in
    `metadata.jsonl` (the imagefolder layout of Hugging Face datasets: `{"file_name": …,
    "text": …}`, where `caption` or `prompt` may replace `text`), then `prompt`. An empty caption
    counts as none.

    Args:
        table: of `read_metadata`.
        extension: of caption files, in place of .txt and .caption.

    Raises:
        UserError: there is no caption and no prompt, or its file is not UTF-8.
    """
    for suffix in _any_case(*((extension,) if extension else (".txt", ".caption"))):
        beside = picture.with_name(picture.stem + suffix)
        if beside.is_file():
            split = (" ".join(line.split()) for line in read_text(beside).splitlines())
            if lines := [line for line in split if line]:
                return lines
    caption = table.get(plain_name(picture.name), "") or (prompt or "").strip()
    if not caption:
        where = picture.with_suffix(".txt").name
        raise UserError(
            f"no caption for {picture}: write one into {where} beside it, or give a prompt"
        )
    return [caption]


def _any_case(*suffixes: str) -> list[str]:
    """The spellings that programs and systems use: .txt, .TXT, .Txt."""
    each = [spelling for s in suffixes for spelling in (s, s.lower(), s.upper(), s.title())]
    return list(dict.fromkeys(each))


def plain_name(name: str) -> str:
    """A file's name as names are compared."""
    # macOS stores é as e plus an accent, which is another string than what the author typed.
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))


def read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name, from a metadata.jsonl; empty if there is no such file.

    Raises:
        UserError: a broken line.
    """
    table: dict[str, str] = {}
    if not path.is_file():
        return table
    # Not splitlines(): it also cuts at characters that may occur inside a JSON string.
    for number, line in enumerate(read_text(path, MOST_METADATA).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line, object)
        except ValueError as error:
            raise UserError(
                f"{where}: not valid JSON ({error}); write one object per line"
            ) from None
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f'{where}: needs {{"file_name": "…", "text": "…"}}')
        key = next((key for key in _TEXT_KEYS if key in entry), None)
        if key is None or not isinstance(entry[key], str | None):
            raise UserError(f'{where}: no "text" for {entry["file_name"]} (a string)')
        name, caption = plain_name(entry["file_name"]), " ".join((entry[key] or "").split())
        if table.setdefault(name, caption) != caption:
            raise UserError(
                f"{where}: {name} has another caption above; for several captions write one per "
                f"line into a .txt file, and give --caption_lines"
            )
    return table


def unused_entries(table: Mapping[str, str], pictures: Sequence[Path]) -> str | None:
    """One line on the captions of a metadata.jsonl that belong to no picture; None without such."""
    names = {plain_name(picture.name) for picture in pictures}
    unused = [name for name in table if name not in names]
    if not unused:
        return None
    return (
        f"metadata.jsonl: {len(unused)} of {len(table)} captions name no picture that is used, "
        f"the first {unused[0]}; file_name is the name beside metadata.jsonl"
    )
