"""One run at a time: `python -m diffusekrona.ui.turn QUEUE FOLDER COMMAND…`.

The process takes a ticket, a locked file in QUEUE, waits until all older tickets are released, and
becomes COMMAND. The lock goes with it and is released by the system however the command ends, so a
queue needs no server.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import exit_on_user_error, writing

try:
    import fcntl
except ImportError:  # Windows: runs start at once
    fcntl = None

_PAUSE = 0.3  # seconds between two looks at the queue


@dataclass(frozen=True)
class Ticket:
    """One place in the queue. `number` orders them; `folder` is the run's."""

    number: int
    pid: int
    folder: str


def tickets(queue: Path) -> list[Ticket]:
    """The tickets of live processes, oldest first. Those of dead ones are removed."""
    found = []
    for path in sorted(queue.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if _is_held(path):
                content = json.loads(path.read_text())
                found.append(Ticket(int(path.stem), int(content["pid"]), str(content["folder"])))
            else:
                path.unlink()
    return found


def _is_held(path: Path) -> bool:
    if fcntl is None:
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def take_ticket(queue: Path, folder: Path) -> int:
    """Join the queue at its end; the ticket's number. The lock lasts as long as the process."""
    queue.mkdir(parents=True, exist_ok=True)
    number = time.time_ns()
    temporary = queue / f".{number}-{os.getpid()}"
    handle = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.set_inheritable(handle, True)
    os.write(handle, json.dumps({"pid": os.getpid(), "folder": str(folder)}).encode())
    os.replace(temporary, queue / f"{number}.json")  # seen locked, or not at all
    return number


def main() -> None:
    """Entry point: wait, then become the command."""
    queue, folder, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    with writing(queue):
        number = take_ticket(queue, folder)
    while any(ticket.number < number for ticket in tickets(queue)):
        time.sleep(_PAUSE)
    os.execv(command[0], command)


if __name__ == "__main__":
    exit_on_user_error(main)
