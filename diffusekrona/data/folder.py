"""Pictures of a folder: find them, sort them into buckets, deal them out in batches.

Sizes are (height, width) in pixels throughout, as tensors have them; PIL's own are (width, height).
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from itertools import cycle, islice
from pathlib import Path

from ..common.errors import UserError
from ..common.paths import as_path
from ..common.pictures import PICTURE_SUFFIXES, why_not
from .caption_files import CAPTION_SUFFIXES, plain_name
from .masks import picture_of_mask

# What other tools write captions and tags into; not read here.
_OTHER_CAPTIONS = (".json", ".csv", ".tsv", ".tags", ".cap", ".captions", ".yaml", ".yml", ".xml")


def find_pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The usable pictures directly in `folder`, each decoded once to be sure.

    Returns:
        The pictures' paths, sorted by name, and one line (`name: reason`) for each thing that was
        left out. Files of captions and masks are neither.

    Raises:
        UserError: `folder` is missing, is not a folder, is empty, or has no usable picture.
    """
    folder = as_path(folder)
    pictures: list[Path] = []
    skipped: list[str] = []
    entries = _entries(folder)
    stems = {entry.stem for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES}
    for entry in entries:
        if entry.suffix.lower() in _OTHER_CAPTIONS and not entry.name.startswith("."):
            skipped.append(f"{entry.name}: not read; captions come from .txt and .caption files")
            continue
        if entry.suffix.lower() in CAPTION_SUFFIXES and not entry.name.startswith("."):
            continue
        if (stem := picture_of_mask(entry.name)) is not None and not entry.name.startswith("."):
            if stem not in stems:
                skipped.append(f"{entry.name}: a mask, but no picture is called {stem}")
            continue
        reason = why_not(entry)
        if reason is None:
            pictures.append(entry)
        else:
            skipped.append(f"{entry.name}: {reason}")
    if not pictures:
        raise UserError(_nothing_found(folder, skipped))
    return pictures, skipped


def first_pictures(folder: Path, count: int) -> list[Path]:
    """At most `count` usable pictures of `folder`, the first by name; none if it is gone."""
    try:
        entries = _entries(as_path(folder))
    except UserError:
        return []
    entries = [entry for entry in entries if picture_of_mask(entry.name) is None]
    return list(islice((entry for entry in entries if why_not(entry) is None), count))


def unread_captions(folder: Path, pictures: Sequence[Path]) -> list[str]:
    """One line (`name: reason`) for each caption file that belongs to no picture."""
    stems = {plain_name(picture.stem) for picture in pictures}
    names = {plain_name(picture.name) for picture in pictures}
    lines = []
    for entry in _entries(as_path(folder)):
        kind = entry.suffix.lower()
        if kind not in CAPTION_SUFFIXES or entry.name.startswith("."):
            continue
        if kind == ".jsonl" and entry.name != "metadata.jsonl":
            lines.append(f"{entry.name}: not read; only metadata.jsonl is")
        elif kind != ".jsonl" and plain_name(entry.stem) in names - stems:
            own = Path(entry.stem).stem + kind
            lines.append(f"{entry.name}: not read; the caption of {entry.stem} is called {own}")
        elif kind != ".jsonl" and plain_name(entry.stem) not in stems:
            lines.append(f"{entry.name}: a caption, but no picture is called {entry.stem}")
    return lines


def _entries(folder: Path) -> list[Path]:
    """The entries of `folder`, sorted by name; a UserError if it cannot be listed."""
    try:
        return sorted(folder.iterdir(), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"no folder {folder}: give the folder that holds the pictures") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: give the folder that holds the pictures") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot list the folder {folder}: {reason}") from error


def _nothing_found(folder: Path, skipped: list[str]) -> str:
    line = f"no usable picture in {folder}"
    if not skipped:
        return f"{line}: it holds none; put some {', '.join(PICTURE_SUFFIXES[:4])} … files there"
    for inside in _entries(folder):
        if inside.is_dir() and not inside.name.startswith("."):
            try:
                count = sum(child.suffix.lower() in PICTURE_SUFFIXES for child in inside.iterdir())
            except OSError:
                continue
            if count:
                return f"{line} itself, but {inside} holds {count}: give that folder"
    more = f"; and {len(skipped) - 4} more" if len(skipped) > 4 else ""
    return f"{line}; it holds {'; '.join(skipped[:4])}{more}"


def bucket_sizes(resolution: int, step: int = 64, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """Picture sizes of about equal area for training on mixed aspect ratios, as SDXL was.

    Returns:
        (height, width) pairs from widest to tallest: multiples of `step`, at most `resolution`²
        pixels, the longer side at most `max_aspect` times the shorter. None fits inside another,
        but for the square, which is always there.

    Raises:
        UserError: `resolution` is smaller than `step`.
        ValueError: `step` or `max_aspect` is smaller than 1.
    """
    if step < 1 or max_aspect < 1:
        raise ValueError(f"step and max_aspect must be at least 1, got {step} and {max_aspect}")
    if resolution < step:
        raise UserError(f"a resolution of {resolution} pixels is below the minimum, {step}")
    side = resolution // step * step
    sizes = {(side, side)}
    for short in range(step, side + 1, step):
        long = int(min(resolution**2 // short, short * max_aspect)) // step * step
        sizes |= {(short, long), (long, short)}
    kept = [
        (h, w)
        for h, w in sizes
        if (h, w) == (side, side) or not any(h <= a and w <= b for a, b in sizes - {(h, w)})
    ]
    return sorted(kept, key=lambda size: (size[0] / size[1], size))


def nearest_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket (height, width) that cuts least off a picture of `size` (height, width)."""

    def loss(bucket: tuple[int, int]) -> tuple[float, int]:
        distance = abs(math.log(size[0] * bucket[1] / (size[1] * bucket[0])))
        return round(distance, 9), -bucket[0] * bucket[1]

    return min(buckets, key=loss)


def batches(
    bucket_of: Sequence[Hashable], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """One epoch's batches of indices, a pure function of the arguments on every platform.

    Args:
        bucket_of: the bucket of each index; a batch never mixes buckets.
        batch_size: indices in each batch. A bucket's last batch is filled up from its beginning.
        seed: of the run.
        epoch: gives each epoch a different order.

    Returns:
        Shuffled batches in which every index appears at least once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rng = random.Random(f"{seed}/{epoch}")  # seeded through SHA-512, unlike hash()
    groups: dict[Hashable, list[int]] = {}
    for index, bucket in enumerate(bucket_of):
        groups.setdefault(bucket, []).append(index)
    batches = []
    for group in groups.values():
        rng.shuffle(group)
        full = math.ceil(len(group) / batch_size) * batch_size
        filled = list(islice(cycle(group), full))
        batches += [filled[start : start + batch_size] for start in range(0, full, batch_size)]
    rng.shuffle(batches)
    return batches
