"""Whether photographs are given to a bundled base, which draws none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..bases.bundled import is_bundled
from ..common.pictures import picture_size

log = logging.getLogger(__name__)

#: Pixels: whatever camera takes pictures larger than this; the sample subjects' are smaller.
_LARGEST_RENDER = 512


def report_photographs(base: str, pictures: Sequence[Path]) -> None:
    """One line in the log if the base is a bundled one and some picture is as large as a
    photograph."""
    if not is_bundled(base):
        return
    large = [path for path in pictures if max(picture_size(path)) > _LARGEST_RENDER]
    if large:
        log.warning(
            "%s knows rendered toys only and cannot draw photographs such as %s: it shows how the "
            "steps work. For your own photos use Stable Diffusion or SDXL, which need a GPU.",
            base,
            large[0].name,
        )
