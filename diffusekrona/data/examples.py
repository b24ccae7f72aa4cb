"""Examples: each picture that is trained on, with its captions and its mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.pictures import content_key, picture_size
from .caption_files import caption_lines, read_metadata
from .captions import shuffled, with_trigger
from .folder import bucket_sizes, find_pictures, nearest_bucket, unread_captions
from .masks import find_mask, mask_files
from .settings import DataSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A picture to train on.

    Attributes:
        path: the picture's file.
        captions: those that it is trained with; one of them each time.
        mask: file of its mask; the picture's own file stands for its alpha channel.
        caption_dropout: how often it is trained without a caption, from 0 to 1.
    """

    path: Path
    captions: tuple[str, ...]
    mask: Path | None = None
    caption_dropout: float = 0.0

    def content(self) -> str:
        """One line that differs if what is trained on differs: hashes and captions."""
        masks = () if self.mask is None else (f"mask {content_key(self.mask)}",)
        return " ".join([content_key(self.path), *self.captions, *masks])


@dataclass(frozen=True)
class Finding:
    """Something that the user should know about a folder or a picture in it.

    Attributes:
        text: one line.
        picture: the picture that it is about; None for the whole folder.
        fatal: training stops with it.
    """

    text: str
    picture: Path | None = None
    fatal: bool = False


def read_examples(data: DataSettings, seed: int) -> list[Example]:
    """The usable pictures of the folder, each with its captions and mask; what is skipped is
    reported.

    Args:
        seed: of the orders of shuffled tags.

    Raises:
        UserError: no usable picture, a picture without a caption, or masks asked for where no
            picture has one.
    """
    examples, findings = look_through(data, seed)
    for finding in findings:
        if finding.fatal:
            raise UserError(finding.text)
    for finding in findings:
        log.warning("%s", finding.text)
    return examples


def look_through(data: DataSettings, seed: int) -> tuple[list[Example], list[Finding]]:
    """The usable pictures of the folder, and all that is wrong: `read_examples` stops at the first
    fatal finding. A picture whose captions cannot be read has none.

    Raises:
        UserError: the folder has no usable picture.
    """
    folder = data.instance_data_dir
    pictures, skipped = find_pictures(folder)
    skipped += unread_captions(folder, pictures)
    findings = [Finding(f"skipped in {folder}: {line}") for line in skipped]
    captions = _all_captions(pictures, data, seed, findings)
    masks = _all_masks(pictures, data, findings)
    examples = [
        Example(picture, own, mask, data.caption_dropout)
        for picture, own, mask in zip(pictures, captions, masks, strict=True)
    ]
    return examples, findings


def _all_captions(
    pictures: Sequence[Path], data: DataSettings, seed: int, findings: list[Finding]
) -> list[tuple[str, ...]]:
    table: dict[str, str] = {}
    try:
        table = read_metadata(data.instance_data_dir.expanduser() / "metadata.jsonl")
    except UserError as error:
        findings.append(Finding(str(error), fatal=True))
    found: list[tuple[str, ...]] = []
    for picture in pictures:
        try:
            lines = caption_lines(picture, table, data.instance_prompt)
            found.append(_captions(lines, data, seed))
        except UserError as error:
            findings.append(Finding(str(error), picture, fatal=True))
            found.append(())
    return found


def _all_masks(
    pictures: Sequence[Path], data: DataSettings, findings: list[Finding]
) -> list[Path | None]:
    folder = data.instance_data_dir
    if not data.masked_loss:
        if unused := mask_files(folder):
            line = f"{len(unused)} masks in {folder} are not used: give --masked_loss"
            findings.append(Finding(line))
        return [None] * len(pictures)
    masks = [find_mask(picture) for picture in pictures]
    without = [p.name for p, mask in zip(pictures, masks, strict=True) if mask is None]
    if len(without) == len(pictures):
        line = (
            f"--masked_loss: no picture in {folder} has a mask; put photo.mask.png beside "
            "photo.jpg, white where it is to be learned, or give it an alpha channel"
        )
        findings.append(Finding(line, fatal=True))
    elif without:
        line = f"without a mask, so trained on as a whole: {', '.join(without)}"
        findings.append(Finding(line))
    return masks


def _captions(lines: Sequence[str], data: DataSettings, seed: int) -> tuple[str, ...]:
    """Everything that a picture is trained with, from the lines of its caption file."""
    each = lines if data.caption_lines else [" ".join(lines)]
    each = [with_trigger(line, data.trigger) for line in each]
    if not data.shuffle_caption:
        return tuple(each)
    return tuple(order for line in each for order in shuffled(line, data.keep_tokens, seed))


def sizes_of(
    examples: Sequence[Example], resolution: int, bucket_step: int | None
) -> list[tuple[int, int]]:
    """The size (height, width) in pixels that each example is cut to.

    Args:
        resolution: pixels per side of a square, or of one with a bucket's area.
        bucket_step: what the buckets' sides are multiples of; None for squares.
    """
    if bucket_step is None:
        return [(resolution, resolution)] * len(examples)
    buckets = bucket_sizes(resolution, bucket_step)
    return [nearest_bucket(picture_size(example.path), buckets) for example in examples]
