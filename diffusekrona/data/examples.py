"""Examples: each picture that is trained on, with its captions and its mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.pictures import content_key
from .captions import shuffled, with_trigger
from .folder import read_folder
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


def read_examples(data: DataSettings, seed: int) -> list[Example]:
    """The usable pictures of the folder, each with its captions and mask; what is skipped is
    reported.

    Args:
        seed: of the orders of shuffled tags.

    Raises:
        UserError: no usable picture, a picture without a caption, or masks asked for where no
            picture has one.
    """
    folder = data.instance_data_dir
    pictures, captions = read_folder(folder, data.instance_prompt)
    masks: list[Path | None] = [None] * len(pictures)
    if data.masked_loss:
        masks = [find_mask(picture) for picture in pictures]
        without = [p.name for p, mask in zip(pictures, masks, strict=True) if mask is None]
        if len(without) == len(pictures):
            raise UserError(
                f"--masked_loss: no picture in {folder} has a mask; put photo.mask.png beside "
                "photo.jpg, white where it is to be learned, or give it an alpha channel"
            )
        if without:
            log.warning("without a mask, so trained on as a whole: %s", ", ".join(without))
    elif unused := mask_files(folder):
        log.warning("%d masks in %s are not used: give --masked_loss", len(unused), folder)
    return [
        Example(picture, _captions(lines, data, seed), mask, data.caption_dropout)
        for picture, lines, mask in zip(pictures, captions, masks, strict=True)
    ]


def _captions(lines: Sequence[str], data: DataSettings, seed: int) -> tuple[str, ...]:
    """Everything that a picture is trained with, from the lines of its caption file."""
    each = lines if data.caption_lines else [" ".join(lines)]
    each = [with_trigger(line, data.trigger) for line in each]
    if not data.shuffle_caption:
        return tuple(each)
    return tuple(order for line in each for order in shuffled(line, data.keep_tokens, seed))
