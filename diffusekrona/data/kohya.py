"""Kohya's sd-scripts: folders named after repeats and class tokens, dataset configs, captions and
tags in JSON.

Their format: docs/config_README-en.md and library/config_util.py of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError, shortened
from ..common.json_files import parse_json
from ..common.paths import as_path
from ..common.text_files import MOST_METADATA, read_text
from .folder import first_pictures

log = logging.getLogger(__name__)

# Kohya's names to those of a `Source`.
_SAME = {
    "image_dir": "folder",
    "class_tokens": "prompt",
    "num_repeats": "repeats",
    "shuffle_caption": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "caption_dropout_rate": "caption_dropout",
    "caption_extension": "caption_extension",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "keep_tokens_separator": "keep_tokens_separator",
    "secondary_separator": "secondary_separator",
    "enable_bucket": "aspect_ratio_buckets",
    "flip_aug": "random_flip",
    "alpha_mask": "masked_loss",
    "metadata_file": "metadata",
    "is_reg": "regularisation",
}
# Without effect on what is trained on, or at these values.
_NEUTRAL: dict[str, Any] = {"caption_separator": ",", "cache_info": None}
_MOST_BYTES = 1 << 19
_LONGEST_LINE = 4096  # characters; no path is longer
_OWN = ("resolution", "random_crop", "enable_wildcard")


def read_dataset_config(path: Path) -> list[dict[str, Any]]:
    """The subsets of a dataset config, TOML or JSON, as entries under the names of a `Source`.

    A subset's values come before its dataset's, and these before `[general]`. A subset that its
    dataset has already is left out. What has no counterpart here is reported in one line.

    Raises:
        UserError: it cannot be read, or has another form.
    """
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    text = read_text(path, _MOST_BYTES)
    try:
        content = _parse_toml(text) if kind == "TOML" else parse_json(text, dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid {kind}: {shortened(error, 200)}") from None
    general = _table(content.get("general", {}), f"{path}: general")
    entries: list[dict[str, Any]] = []
    unused: set[str] = set()
    for number, dataset in enumerate(_tables(content.get("datasets"), f"{path}: datasets"), 1):
        where = f"{path}, dataset {number}"
        own = {name: value for name, value in dataset.items() if name != "subsets"}
        there: set[str] = set()
        for subset in _tables(dataset.get("subsets"), f"{where}: subsets"):
            values = {**general, **own, **subset}
            entry = {**_entry(values, where), "dataset": number}
            unused |= {name for name, value in values.items() if not _is_used(name, value)}
            if (source := str(entry.get("metadata", entry["folder"]))) in there:
                log.warning("%s: %s is there twice; the second is left out", where, source)
                continue
            there.add(source)
            if entry.get("repeats", 1) == 0:
                log.warning("%s: %s has num_repeats = 0; it is left out", where, source)
                continue
            entries.append(entry)
    if unused:
        log.warning("%s: not used here: %s", path, ", ".join(sorted(unused)))
    return entries


def _parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML text. Raises ValueError or RecursionError for what is not one."""
    longest = max(map(len, text.split("\n")))
    if longest > _LONGEST_LINE:  # the parser's time grows with the square of a key's parts
        raise ValueError(f"a line of {longest} characters")
    return tomllib.loads(text)


def _is_used(name: str, value: Any) -> bool:
    if name in _NEUTRAL:
        return _NEUTRAL[name] in (None, value)
    return name in _SAME or name in _OWN or value in (False, 0)


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table.")
    return value


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be one table or more.")
    return [_table(one, where) for one in value]


def _entry(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    entry = {ours: values[theirs] for theirs, ours in _SAME.items() if theirs in values}
    entry["center_crop"] = not values.get("random_crop", False)
    wildcards = values.get("enable_wildcard", False)
    entry |= {"caption_lines": wildcards, "wildcards": wildcards, "first_line": not wildcards}
    if (extension := entry.get("caption_extension")) and str(extension)[0] != ".":
        entry["caption_extension"] = f".{extension}"
    if "resolution" in values:
        entry["resolution"] = _resolution(values, where)
    if "folder" not in entry:
        if not isinstance(entry.get("metadata"), str):
            raise UserError(f"{where}: each subset needs image_dir.")
        entry["folder"] = _folder_of(Path(entry["metadata"]), where)
    return entry


def _resolution(values: Mapping[str, Any], where: str) -> int:
    """The side of the square of the same area; rounded up, so that the size itself fits into it."""
    given = values["resolution"]
    sides = given if isinstance(given, list) else [given, given]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(
            f"{where}: resolution must be a number of pixels, or two, not {shortened(given)}."
        )
    if sides[0] != sides[1] and not values.get("enable_bucket", False):
        raise UserError(
            f"{where}: resolution {shortened(given)} is not square: set enable_bucket = true."
        )
    return math.isqrt(sides[0] * sides[1] - 1) + 1  # rounded up, of any number of digits


def _folder_of(metadata: Path, where: str) -> str:
    """The folder of the pictures that a metadata file names by their paths."""
    folders = {str(Path(key).parent) for key in read_metadata_json(metadata)}
    if len(folders) != 1 or folders == {"."}:
        raise UserError(
            f"{where}: {metadata} does not say in which folder they are: set image_dir."
        )
    return folders.pop()


def read_folder_names(parent: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """The folders in `parent` that are named as kohya's DreamBooth method reads them, `10_sks dog`
    for ten repeats of "sks dog", as entries under the names of a `Source`.

    Where `parent` has none but its folder `img` does, these, and those in `reg` as regularisation:
    so kohya's page lays them out.

    Returns:
        The entries, sorted by name, none if `parent` holds pictures itself or no such folder; and
        the folders beside them that are left out: without a number, or without a picture.
    """
    parent = as_path(parent)
    if first_pictures(parent, 1):
        return [], []
    entries, left_out = _named_folders(parent, False)
    if not entries:
        entries, left_out = _named_folders(parent / "img", False)
        reg_entries, reg_left_out = _named_folders(parent / "reg", True)
        entries, left_out = entries + reg_entries, left_out + reg_left_out
    if not any("prompt" in entry and not entry["regularisation"] for entry in entries):
        return [], []
    return entries, left_out


def _named_folders(parent: Path, regularisation: bool) -> tuple[list[dict[str, Any]], list[Path]]:
    try:
        folders = sorted(each for each in parent.iterdir() if each.is_dir())
    except OSError:
        return [], []
    entries: list[dict[str, Any]] = []
    left_out: list[Path] = []
    for folder in folders:
        number, _, tokens = folder.name.partition("_")
        try:
            repeats = int(number)
        except ValueError:
            repeats = 0
        if repeats < 1 or not first_pictures(folder, 1):
            left_out += [folder] if not folder.name.startswith(".") else []
            continue
        entry = {"folder": str(folder), "repeats": repeats, "regularisation": regularisation}
        entries.append({**entry, "prompt": tokens} if tokens else entry)
    return entries, left_out


def read_metadata_json(path: Path) -> dict[str, list[str]]:
    """Captions by picture, line by line, from kohya's metadata JSON: the tags follow each line.

    Returns:
        By key as it stands there: a path, a name, or a name without its ending.

    Raises:
        UserError: it cannot be read, or has another form.
    """
    text = read_text(path, MOST_METADATA)
    try:
        content = parse_json(text, dict[str, dict[str, Any]])
    except ValueError as error:
        raise UserError(f"{path} is not a metadata file of kohya's scripts: {error}") from None
    found: dict[str, list[str]] = {}
    for key, values in content.items():
        caption, tags = values.get("caption"), values.get("tags")
        if not isinstance(caption, str | None) or not isinstance(tags, str | None):
            raise UserError(f"{path}: caption and tags of {key} must be text.")
        if not caption:
            caption, tags = tags, None
        of_all = ", ".join((tags or "").split("\n")).strip()
        lines = [" ".join(line.split()) for line in (caption or "").split("\n")]
        found[key] = [", ".join(filter(None, (line, of_all))) for line in lines if line]
    return found


def caption_in(table: Mapping[str, list[str]], picture: Path) -> list[str] | None:
    """A picture's caption in a table of `read_metadata_json`; None if it is not there."""
    for key in (str(picture), str(picture.absolute()), picture.name, picture.stem):
        if key in table:
            return table[key]
    return None
