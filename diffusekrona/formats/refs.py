"""Where a tensor is stored on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ref:
    """A tensor in a file."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
