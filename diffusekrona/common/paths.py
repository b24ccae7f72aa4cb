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


def looks_local(name_or_path: str) -> bool:
    """Whether a text can only be a path: the hub's names are `owner/name`."""
    odd = name_or_path.startswith((".", "/", "~")) or "\\" in name_or_path
    return odd or name_or_path.count("/") != 1


def is_local(name: str) -> bool:
    """Whether a model's name is the path of a file or folder of this machine, and not one of the
    hub: by how it is written, or because it is there."""
    return looks_local(name) or os.path.exists(name)  # False of what cannot be a path
