"""What all stages share: a time budget, its learning rate, checkpoints, averaged weights.

Schedules run over wall-clock time, not steps, because the machine may be shared: "half an hour of
training" is a promise that can be kept, "40,000 steps" is not.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

DECAY_SHARE = 0.3  # the last part of the budget, in which the learning rate falls to zero


@dataclass
class Clock:
    """Time spent on a stage over all its runs, in seconds; `budget` is the whole of it."""

    budget: float
    spent: float = 0.0
    step: int = 0
    steps_now: int = 0  # in this run
    _last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Ends a step. Pauses longer than 30 s (a laptop asleep) are not counted in full."""
        now = time.monotonic()
        self.spent += min(now - self._last, 30.0)
        self._last = now
        self.step += 1
        self.steps_now += 1

    @property
    def done(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, self.spent / max(self.budget, 1e-9))

    def lr(self, peak: float, warmup_steps: int = 200) -> float:
        """Warm-up in every run, a plateau, and a linear fall to zero at the end of the budget.

        A plateau, because a stage may be given more minutes later.
        """
        warm = min(1.0, (self.steps_now + 1) / warmup_steps)
        return peak * warm * min(1.0, (1 - self.done) / DECAY_SHARE)


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


@dataclass
class Recipe:
    """How a stage is trained."""

    peak_lr: float
    warmup_steps: int = 200
    ema_decay: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    save_every: float = 240.0  # seconds


def train(
    path: Path,
    model: nn.Module,
    batch_loss: Callable[[nn.Module, int, float], torch.Tensor],
    minutes: float,
    recipe: Recipe,
    on_save: Callable[[nn.Module, int], str] = lambda ema, step: "",
) -> nn.Module:
    """Trains `model` for `minutes` over all runs, on the device that it is on.

    State is kept in `path`; a new run continues from it.

    Args:
        batch_loss: gets the model, the step and the share of the budget that is spent.
        on_save: gets the averaged weights and the step after every save; what it returns is
            printed.

    Returns:
        The averaged weights.
    """
    clock, ema = Clock(minutes * 60), copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        recipe.peak_lr,
        recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        clock.spent, clock.step = state["spent"], state["step"]
    torch.manual_seed(clock.step)
    last_save, mean_loss = clock.spent, None
    clock._last = time.monotonic()
    while clock.done < 1:
        model.train()
        loss = batch_loss(model, clock.step, clock.done)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = clock.lr(recipe.peak_lr, recipe.warmup_steps)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        ema_update(ema, model, recipe.ema_decay, clock.step)
        value = float(loss.detach())
        mean_loss = value if mean_loss is None else 0.99 * mean_loss + 0.01 * value
        if clock.spent - last_save > recipe.save_every or clock.done >= 1:
            last_save = clock.spent
            state = {"model": model.state_dict(), "ema": ema.state_dict()}
            state |= {"optimizer": optimizer.state_dict()}
            save_atomic(state | {"spent": clock.spent, "step": clock.step}, path)
            note = on_save(ema, clock.step)
            rate = clock.step / max(clock.spent, 1e-9)
            print(
                f"{path.stem} step {clock.step}, {clock.spent / 60:.1f} min, {rate:.2f} steps/s: "
                f"loss {mean_loss:.4f} {note}",
                flush=True,
            )
            clock._last = time.monotonic()  # neither saving nor drawing is training
    return ema


def load_ema(path: Path, model: nn.Module) -> nn.Module:
    """`model` with the averaged weights that `train` left in `path`, for use."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["ema"])
    return model.requires_grad_(False).eval()
