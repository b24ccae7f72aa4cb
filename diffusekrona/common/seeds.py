"""Seeds that do not depend on the machine, the device or the order of the work."""

from __future__ import annotations

import hashlib


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed, a pure function of its arguments on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
