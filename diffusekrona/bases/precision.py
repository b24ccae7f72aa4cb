"""The precisions that flags name, as torch's dtypes and in bytes: the package's one table of them.

Importable without torch, so that `--help` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STORED = ("fp32", "fp16", "bf16")  # what files are written in
DTYPE_NAMES = {"no": "float32", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
BYTES = {"no": 4, "fp32": 4, "fp16": 2, "bf16": 2}  # of one value


def dtype_of(precision: str) -> torch.dtype:
    """torch's dtype of a precision. Raises KeyError for a name that no flag takes."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPE_NAMES[precision])
    return dtype
