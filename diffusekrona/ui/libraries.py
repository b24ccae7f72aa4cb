"""The libraries that take seconds to import: read in a thread while the page opens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from ..common.errors import UserError

_reading: threading.Thread | None = None


def read_in_background(use: Callable[[], object]) -> None:
    """Import what `use` needs, by doing it once."""
    global _reading

    def read() -> None:
        with contextlib.suppress(UserError):
            use()

    _reading = threading.Thread(target=read, daemon=True)
    _reading.start()


def wait_for_libraries() -> None:
    """Return when they are read: two threads that import parts of one library get in each other's
    way."""
    if _reading and _reading is not threading.current_thread():
        _reading.join()
