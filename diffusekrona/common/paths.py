"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def as_path(text: str | os.PathLike[str]) -> Path:
    """The path of a text from a flag or a file: `~` is the home folder.

    The shell leaves the `~` of `--output_dir=~/runs` as it is, and a folder of that name is best
    never made. `~name` of a user whom the machine does not know stays as it is, so that the error
    of a missing file names it; `Path.expanduser` would raise without a name.
    """
    return Path(os.path.expanduser(text))
