"""Sources of chance for tests that damage things at random."""

from __future__ import annotations

import random
from collections.abc import Iterator


def chances(count: int) -> Iterator[random.Random]:
    """As many, always the same; the last seed that a failed test printed is the one that failed."""
    for seed in range(count):
        print("seed", seed)
        yield random.Random(seed)
