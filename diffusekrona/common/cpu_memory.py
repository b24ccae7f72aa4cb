"""Memory of a process on the CPU: freed blocks kept for its next tensors, and its peak."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory(device: torch.device | str) -> bool:
    """Where `device` is the CPU, let the process keep freed memory for its next tensors.

    glibc hands large blocks back to the system at once, and the system gives them out again page
    by page, zeroed. A step on a CPU makes and frees the same gigabytes every time: on a virtual
    machine, whose pages are dear, a fifth of its time went there (docs/performance.md). The peak
    stays where it was, since steps are alike; only between steps the process looks larger. A GPU's
    tensors torch keeps by itself, and its host had better have the memory back.

    Returns:
        Whether it is done: not for another device, nor with another C library than glibc.
    """
    if str(device).partition(":")[0] != "cpu" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    # No block by mmap, which is unmapped when it is freed; no giving back of the heap's end.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))


def peak_resident() -> int:
    """Bytes of the largest resident set that this process has had."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage's unit differs
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
