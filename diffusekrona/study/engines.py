"""Running many cells on this machine: one after another, or one per GPU.

This engine and Ray's both call `work`, which never raises: a failed cell is reported, and the
others continue. A worker that dies (killed, out of memory) costs its cell an attempt; the next
attempt resumes from the cell's checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..common.errors import UserError, writing
from .cell import LOG, Cell

RUNNING = "running"  # a file in a cell's folder while a worker has it: that worker's process id
LOCK = ".lock"  # held meanwhile; the system frees it when the worker dies
TRIES = 3
GRACE = 20.0  # seconds that a worker has to save its training when the study is stopped


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its error in one line, or None."""

    cell: Cell
    error: str | None = None


OnOutcome = Callable[[Outcome], None]
Job = Callable[[Cell, Path], str | None]


def work(cell: Cell, root: Path) -> str | None:
    """Run one cell in this process, its output into the cell's log; returns its error, or None.

    A cell that another study has in hand is waited for, and then found finished.
    """
    from .cell_run import run_cell  # brings the libraries, which are quiet by now

    folder = cell.folder(root)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / LOCK), _output_to(folder / LOG), _marked(folder / RUNNING):
                return _run_and_log(run_cell, cell, root)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{folder}: {error}"


def _run_and_log(run_cell: Callable[[Cell, Path], Any], cell: Cell, root: Path) -> str | None:
    log = cell.folder(root) / LOG
    try:
        run_cell(cell, root)
    except UserError as error:
        _add_to(log, f"error: {error}\n")
        return str(error)
    except Exception as error:  # whatever it is, the other cells continue
        _add_to(log, traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


@contextlib.contextmanager
def _marked(path: Path) -> Generator[None]:
    path.write_text(str(os.getpid()), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _add_to(path: Path, words: str) -> None:
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:  # any file's name
        file.write(words)


@contextlib.contextmanager
def _output_to(path: Path) -> Generator[None]:
    """Everything that this process and its libraries print goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the log's disk is full: it is said elsewhere
                stream.flush()
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
            os.close(handle)


def quieten() -> None:
    from ..bases.loading import quiet_libraries

    log = logging.getLogger("diffusekrona")
    if not log.handlers:  # as the training program does it, which then adds none
        log.addHandler(logging.StreamHandler(sys.stderr))
    quiet_libraries()


# --- this machine ---------------------------------------------------------------------------------


def run_local(
    cells: Sequence[Cell],
    root: Path,
    workers: int,
    gpus: Sequence[str],
    on_outcome: OnOutcome,
    job: Job = work,
) -> None:
    """Run cells in `workers` processes.

    Args:
        gpus: names as CUDA_VISIBLE_DEVICES has them; each process gets one to itself, if there are.
        job: what a process does with a cell.
    """
    left = list(cells)
    tries: dict[str, int] = {}
    while left:
        left = _until_broken(left, root, workers, gpus, tries, on_outcome, job)


def _until_broken(
    cells: Sequence[Cell],
    root: Path,
    workers: int,
    gpus: Sequence[str],
    tries: dict[str, int],
    on_outcome: OnOutcome,
    job: Job,
) -> list[Cell]:
    """Run cells until all are done or a worker dies; returns those to try again."""
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    for cell in cells:
        (cell.folder(root) / RUNNING).unlink(missing_ok=True)
    start = (numbers, workers, tuple(gpus), os.getpid())
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=start)
    processes = pool._processes  # by their ids; the pool itself forgets them when it breaks
    futures: dict[Future[str | None], Cell] = {}
    try:
        futures |= {pool.submit(job, cell, root): cell for cell in cells}
        again: list[Cell] = []
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                _note(futures[future], future, root, processes, tries, again, on_outcome)
        return again
    except BaseException:  # Ctrl-C above all
        _stop(pool, list(futures), workers)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stop(pool: ProcessPoolExecutor, futures: Sequence[Future[str | None]], workers: int) -> None:
    """End the workers; each may first save the training that the same Ctrl-C has reached."""
    running = {future for future in futures if future.running()}
    deadline = time.monotonic() + GRACE
    for future in futures:
        future.cancel()
    while running and time.monotonic() < deadline:
        done, _ = wait(running, GRACE / 20, FIRST_COMPLETED)
        if len(done) >= min(workers, len(running)):
            break
        time.sleep(0.1)
    for process in list(pool._processes.values()):
        process.kill()


def _note(
    cell: Cell,
    future: Future[str | None],
    root: Path,
    processes: Mapping[int, Any],
    tries: dict[str, int],
    again: list[Cell],
    on_outcome: OnOutcome,
) -> None:
    try:
        on_outcome(Outcome(cell, future.result()))
    except BrokenProcessPool:
        marker = cell.folder(root) / RUNNING
        if marker.exists() and _died(
            marker.read_text(encoding="utf-8", errors="replace"), processes
        ):
            tries[cell.key()] = tries.get(cell.key(), 0) + 1
        if tries.get(cell.key(), 0) < TRIES:
            again.append(cell)
        else:
            marker.unlink(missing_ok=True)
            on_outcome(Outcome(cell, f"its process was killed {TRIES} times (out of memory?)"))


def _died(pid: str, processes: Mapping[int, Any]) -> bool:
    """Whether the worker of that id died by itself; the pool ends the others by SIGTERM then."""
    deadline = time.monotonic() + GRACE
    while any(process.exitcode is None for process in list(processes.values())):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = {str(number): process.exitcode for number, process in list(processes.items())}
    dead = {number for number, code in codes.items() if code not in (None, 0, -signal.SIGTERM)}
    return pid in dead or not dead


def _start_worker(numbers: Any, workers: int, gpus: Sequence[str], parent: int) -> None:
    _die_with(parent)
    number: int = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    quieten()


def _die_with(parent: int) -> None:
    """Have the system end this worker when the study dies, or two would soon share a cell."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
