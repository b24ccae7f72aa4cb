"""Running many cells as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError, reason_of
from .cell import Cell
from .engines import TRIES, Job, OnOutcome, Outcome, quieten, work


def run_ray(
    cells: Sequence[Cell],
    root: Path,
    address: str | None,
    gpus: float,
    cpus: float,
    on_outcome: OnOutcome,
    job: Job | None = None,
) -> None:
    """Run cells as Ray tasks, on this machine or a cluster whose machines share `root`.

    Args:
        address: of the cluster; None starts or finds a local one.
        gpus, cpus: that each cell asks for.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports] # optional
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install ray") from error
    if not ray.is_initialized():
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, sys.path)])
        environment = {"env_vars": {"PYTHONPATH": path}}
        try:
            ray.init(address, log_to_driver=False, runtime_env=environment, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = reason_of(error)
            raise UserError(
                f"Ray cannot be reached at {address or 'this machine'}: {reason}"
            ) from error
    task = ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=TRIES - 1)(job or _work_in_ray)
    waiting = {task.remote(cell, root): cell for cell in cells}
    while waiting:
        done, _ = ray.wait(list(waiting))
        for reference in done:
            cell = waiting.pop(reference)
            try:
                on_outcome(Outcome(cell, ray.get(reference)))
            except ray.exceptions.RayError as error:
                reason = reason_of(error)
                on_outcome(Outcome(cell, f"its Ray worker was lost: {reason}"))


def _work_in_ray(cell: Cell, root: Path) -> str | None:
    quieten()
    return work(cell, root)
