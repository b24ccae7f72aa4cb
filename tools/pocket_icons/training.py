"""What all stages share: a time budget, its learning rate, checkpoints, EMA, two processes.

Schedules run over wall-clock time, not steps, because the machine may be shared: "half an hour of
training" is a promise that can be kept, "40,000 steps" is not.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm


@dataclass
class Clock:
    """Time spent on a stage over all its runs, in seconds; `budget` is the whole of it."""

    budget: float
    spent: float = 0.0
    step: int = 0
    _last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Ends a step. Pauses longer than 30 s (a laptop asleep) are not counted in full."""
        now = time.monotonic()
        self.spent += min(now - self._last, 30.0)
        self._last = now
        self.step += 1

    @property
    def done(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, self.spent / self.budget)

    def lr(self, peak: float, warmup_steps: int = 200) -> float:
        """Linear warm-up over steps, then half a cosine to zero over the time budget."""
        return peak * min(1.0, (self.step + 1) / warmup_steps) * _cosine(self.done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def rank() -> int:
    """This process's number; 0 when there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages gradients over the processes in one flat all-reduce; a no-op for one process."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def agree(value: float) -> float:
    """Rank 0's `value` in every process, so that all stop at the same step."""
    if not dist.is_initialized():
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0)
    return float(box)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves `ema`'s parameters towards `model`'s; young averages forget faster."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), weight)


def save_atomic(state: dict, path: Path) -> None:
    """Writes `state` so that a kill leaves either the old or the new file, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def progress_bar(clock: Clock, name: str) -> tqdm:
    """A bar over the time budget in whole seconds."""
    total = max(1, round(clock.budget))
    return tqdm(
        total=total,
        initial=min(total, round(clock.spent)),  # tqdm forgets a total that is passed
        desc=name,
        unit="s",
        disable=rank() != 0,
        mininterval=10,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}s {postfix}",
    )


def show(bar: tqdm, clock: Clock, **values) -> None:
    """Moves the bar to the clock and shows the values; the bar itself decides when to redraw."""
    bar.set_postfix(values | {"step": clock.step}, refresh=False)
    bar.update(min(bar.total, round(clock.spent)) - bar.n)


def _worker(number: int, function, processes: int, store: str, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=number, world_size=processes
    )
    function(*args)
    dist.destroy_process_group()


def launch(function, processes: int, *args) -> None:
    """Runs `function(*args)` in `processes` processes of one thread each that share gradients.

    With one process it runs here, on all of torch's threads.
    """
    if processes == 1:
        function(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        torch.multiprocessing.spawn(_worker, (function, processes, store, args), processes)
