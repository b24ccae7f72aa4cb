"""Examples: each picture that is trained on, with its captions and its mask."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from ..common.errors import UserError
from ..common.paths import as_path
from ..common.pictures import content_key, picture_size
from .caption_files import caption_lines, read_metadata, unused_entries
from .captions import SHUFFLES, alternatives, shuffled, with_trigger
from .folder import bucket_sizes, find_pictures, nearest_bucket, unread_captions
from .kohya import caption_in, read_folder_names, read_metadata_json
from .masks import find_mask, mask_files
from .settings import DataSettings
from .sources import Source, names_folders, sources_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A picture to train on.

    Attributes:
        path: the picture's file.
        captions: those that it is trained with; one of them each time.
        mask: file of its mask; the picture's own file stands for its alpha channel.
        caption_dropout: how often it is trained without a caption, from 0 to 1.
        center_crop, random_flip: how it is cut.
        aspect_ratio_buckets: whether its size is that of a bucket, or else a square.
        resolution: pixels per side; None for the run's.
        repeats: how often it occurs in an epoch.
        weight: factor of its loss.
        regularisation: its loss is weighted with --prior_loss_weight as well.
        trigger: the words that its captions should have; None for pictures of the class.
        options: what an entry for its folder says of all this; "" for the flags.
        dataset: pictures of regularisation are as many as the others of the same one.
    """

    path: Path
    captions: tuple[str, ...]
    _: KW_ONLY
    mask: Path | None = None
    caption_dropout: float = 0.0
    center_crop: bool = False
    random_flip: bool = False
    aspect_ratio_buckets: bool = False
    resolution: int | None = None
    repeats: int = 1
    weight: float = 1.0
    regularisation: bool = False
    trigger: str | None = None
    options: str = ""
    dataset: int = 0

    def content(self) -> str:
        """One line that differs if what is trained on differs: hashes and captions."""
        masks = () if self.mask is None else (f"mask {content_key(self.mask)}",)
        options = (self.options,) if self.options else ()
        return " ".join([content_key(self.path), *self.captions, *masks, *options])


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
    """The usable pictures of all folders, each with its captions and mask; what is skipped is
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
    """The usable pictures of all folders, and all that is wrong: `read_examples` stops at the first
    fatal finding. A picture whose captions cannot be read has none.

    Raises:
        UserError: a folder has no usable picture, or the file that names folders is not valid.
    """
    several = names_folders(data.instance_data_dir)
    examples: list[Example] = []
    findings: list[Finding] = []
    if several and as_path(data.instance_data_dir).is_dir():
        findings += [
            Finding(f"left out: {folder}, which has no pictures or no name such as 10_sks dog")
            for folder in read_folder_names(data.instance_data_dir)[1]
        ]
    for source in sources_of(data):
        found = _look_through(source, seed, findings)
        options = source.options() if several else ""
        examples += [replace(example, options=options) for example in found]
    return examples, findings


def _look_through(source: Source, seed: int, findings: list[Finding]) -> list[Example]:
    folder = source.path
    pictures, skipped = find_pictures(folder)
    skipped += unread_captions(folder, pictures)
    own = None if source.metadata is None else Path(source.metadata).name
    findings += [
        Finding(f"skipped in {folder}: {line}")
        for line in skipped
        if own is None or not line.startswith(f"{own}:")
    ]
    lines = _all_lines(pictures, source, findings)
    masks = _all_masks(list(lines), source, findings)
    examples: list[Example] = []
    for (picture, own_lines), mask in zip(lines.items(), masks, strict=True):
        try:
            captions = _captions(own_lines, source, seed)
        except UserError as error:
            findings.append(Finding(str(error), picture, fatal=True))
            captions = ()
        examples.append(
            Example(
                picture,
                captions,
                mask=mask,
                caption_dropout=source.caption_dropout,
                center_crop=source.center_crop,
                random_flip=source.random_flip,
                aspect_ratio_buckets=source.aspect_ratio_buckets,
                resolution=source.resolution,
                repeats=source.repeats,
                weight=source.weight,
                regularisation=source.regularisation,
                trigger=None if source.regularisation else source.trigger,
                dataset=source.dataset,
            )
        )
    return examples


def _all_lines(
    pictures: Sequence[Path], source: Source, findings: list[Finding]
) -> dict[Path, list[str]]:
    """Picture to its caption, line by line. Without one it has no lines; one that kohya's metadata
    does not name is left out."""
    if source.metadata is not None:
        return _lines_of_metadata(pictures, Path(source.metadata), findings)
    table: dict[str, str] = {}
    try:
        table = read_metadata(source.path / "metadata.jsonl")
    except UserError as error:
        findings.append(Finding(str(error), fatal=True))
    if unused := unused_entries(table, pictures):
        findings.append(Finding(f"skipped in {source.path}: {unused}"))
    found: dict[Path, list[str]] = {}
    for picture in pictures:
        found[picture] = []
        try:
            found[picture] = caption_lines(picture, table, source.prompt, source.caption_extension)
        except UserError as error:
            findings.append(Finding(str(error), picture, fatal=True))
    return found


def _lines_of_metadata(
    pictures: Sequence[Path], metadata: Path, findings: list[Finding]
) -> dict[Path, list[str]]:
    table = read_metadata_json(metadata)
    captions = {picture: caption_in(table, picture) for picture in pictures}
    found = {picture: lines for picture, lines in captions.items() if lines is not None}
    if not found:
        raise UserError(f"{metadata} names none of the pictures in {pictures[0].parent}")
    if left := len(pictures) - len(found):
        findings.append(Finding(f"left out: {left} pictures that {metadata} does not name"))
    for picture, lines in found.items():
        if not lines:
            findings.append(Finding(f"{metadata}: no caption for {picture}", picture, fatal=True))
    return found


def _all_masks(
    pictures: Sequence[Path], source: Source, findings: list[Finding]
) -> list[Path | None]:
    folder = source.path
    if not source.masked_loss:
        if unused := mask_files(folder):
            line = f"{len(unused)} masks in {folder} are not used: give --masked_loss"
            findings.append(Finding(line))
        return [None] * len(pictures)
    masks = [find_mask(picture) for picture in pictures]
    without = [p.name for p, mask in zip(pictures, masks, strict=True) if mask is None]
    if len(without) == len(pictures) and not source.regularisation:
        line = (
            f"--masked_loss: no picture in {folder} has a mask; put photo.mask.png beside "
            "photo.jpg, white where it is to be learned, or give it an alpha channel"
        )
        findings.append(Finding(line, fatal=True))
    elif without:
        line = f"without a mask, so trained on as a whole: {', '.join(without)}"
        findings.append(Finding(line))
    return masks


def _captions(lines: Sequence[str], source: Source, seed: int) -> tuple[str, ...]:
    """Everything that a picture is trained with, from the lines of its caption file."""
    if not lines:
        return ()
    if source.caption_lines:
        each = list(lines)
    else:
        each = [lines[0] if source.first_line else " ".join(lines)]
    around = (source.caption_prefix, source.caption_suffix)
    each = [" ".join(filter(None, (around[0], line, around[1]))) for line in each]
    each = [with_trigger(line, source.trigger) for line in each]
    orders = SHUFFLES
    if source.wildcards:
        each = [one for line in each for one in alternatives(line, seed)]
        orders = max(1, SHUFFLES // len(each))  # each caption has text states in memory
    if source.shuffle_caption:
        keep = source.keep_tokens, seed, source.keep_tokens_separator
        each = [order for line in each for order in shuffled(line, *keep)[:orders]]
    if source.secondary_separator:
        each = [line.replace(source.secondary_separator, ",") for line in each]
    return tuple(each)


def balanced(examples: Sequence[Example]) -> list[Example]:
    """The examples, with those of regularisation repeated, or left out at the end, until they are
    as many as the others of their dataset in an epoch, as kohya's scripts have it."""
    repeats: dict[int, int] = {}
    for dataset in dict.fromkeys(example.dataset for example in examples):
        own = {n: example for n, example in enumerate(examples) if example.dataset == dataset}
        wanted = sum(example.repeats for example in own.values() if not example.regularisation)
        given = {n: example.repeats for n, example in own.items() if example.regularisation}
        repeats |= _as_many(given, wanted)
    return [
        replace(example, repeats=repeats.get(number, example.repeats))
        for number, example in enumerate(examples)
        if not example.regularisation or number in repeats
    ]


def _as_many(given: dict[int, int], wanted: int) -> dict[int, int]:
    """Repeats by number, of the first pictures only if these are enough, with the sum `wanted`."""
    if not given or not wanted:  # nothing to be as many as
        return given
    repeats: dict[int, int] = {}
    for number, own in given.items():
        if sum(repeats.values()) < wanted:
            repeats[number] = own
    while (short := wanted - sum(repeats.values())) > 0:
        for number in list(repeats)[:short]:
            repeats[number] += 1
    return repeats


def epoch_length(examples: Sequence[Example]) -> int:
    """Samples in an epoch."""
    return sum(example.repeats for example in examples)


def count_batches(
    examples: Sequence[Example], batch_size: int, resolution: int, pixel_step: int
) -> int:
    """Batches in an epoch: each is of one size, and the last of each size is filled up.

    Args:
        resolution, pixel_step: as of `sizes_of`.

    Raises:
        UserError: as `sizes_of`.
    """
    samples: Counter[tuple[int, int]] = Counter()
    for example, size in zip(examples, sizes_of(examples, resolution, pixel_step), strict=True):
        samples[size] += example.repeats
    return sum(math.ceil(count / batch_size) for count in samples.values())


def sizes_of(
    examples: Sequence[Example], resolution: int, pixel_step: int
) -> list[tuple[int, int]]:
    """The size (height, width) in pixels that each example is cut to.

    Args:
        resolution: pixels per side of a square, or of one with a bucket's area, for the examples
            that have none of their own.
        pixel_step: what the sides of buckets, and resolutions of single folders, are multiples of.

    Raises:
        UserError: a folder's resolution is not such a multiple.
    """
    found: list[tuple[int, int]] = []
    for example in examples:
        side = example.resolution or resolution
        if example.aspect_ratio_buckets:
            buckets = bucket_sizes(side, pixel_step)
            found.append(nearest_bucket(picture_size(example.path), buckets))
            continue
        if example.resolution is not None and side % pixel_step:
            raise UserError(
                f"{example.path.parent}: resolution {side} is not a multiple of {pixel_step}."
            )
        found.append((side, side))
    return found
