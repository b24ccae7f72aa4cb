"""What all stages share: a time budget, its learning rate, checkpoints, averaged weights.

Schedules run over wall-clock time, not steps, because the machine may be shared: "half an hour of
training" is a promise that can be kept, "40,000 steps" is not.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
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
    save_every: float = 240.0  # seconds, at most; a third of the budget where that is less
    muon: bool = False  # for matrices and convolutions; AdamW for the rest


class Optimizers:
    """AdamW, or Muon for everything that is a matrix and AdamW for the rest, as one.

    Muon takes matrices only: a convolution's weight is seen as (out, in * height * width), in the
    same memory. Its steps are scaled to AdamW's, so that one learning rate serves both.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        is_matrix = {
            name: recipe.muon and p.ndim > 1 and min(len(p), p[0].numel()) >= 32
            for name, p in model.named_parameters()
        }
        parameters = dict(model.named_parameters())
        rest = [p for name, p in parameters.items() if not is_matrix[name]]
        decay = recipe.weight_decay
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, recipe.peak_lr, recipe.betas, weight_decay=decay, fused=True)
        ]
        self.matrices = [p for name, p in parameters.items() if is_matrix[name]]
        self.views = [nn.Parameter(p.detach().flatten(1)) for p in self.matrices]
        if self.views:
            self.all.append(
                torch.optim.Muon(
                    self.views,
                    recipe.peak_lr,
                    weight_decay=decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def step(self, lr: float) -> None:
        """Updates the weights from their gradients."""
        for weight, view in zip(self.matrices, self.views, strict=True):
            view.grad = weight.grad.flatten(1)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def state_dict(self) -> list[dict]:
        """Of each optimizer."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        """Continues from `state_dict`."""
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def train(
    path: Path,
    model: nn.Module,
    batch_loss: Callable[[nn.Module, int, float], torch.Tensor],
    minutes: float,
    recipe: Recipe,
    on_save: Callable[[nn.Module, int], str] = lambda ema, step: "",
) -> nn.Module:
    """Trains `model` for `minutes` over all runs, on the device that it is on.

    State is kept in `path`; a new run continues from it. SIGTERM saves, then ends.

    Args:
        batch_loss: gets the model, the step and the share of the budget that is spent.
        on_save: gets the averaged weights and the step after every save; what it returns is
            printed.

    Returns:
        The averaged weights.
    """
    clock, ema = Clock(minutes * 60), copy.deepcopy(model).requires_grad_(False).eval()
    optimizers = Optimizers(model, recipe)
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        if state["optimizers"] is not None:
            optimizers.load_state_dict(state["optimizers"])
        clock.spent, clock.step = state["spent"], state["step"]
    torch.manual_seed(clock.step)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    last_save, mean_loss = clock.spent, None
    clock._last = time.monotonic()
    while clock.done < 1 and not stopped.is_set():
        model.train()
        loss = batch_loss(model, clock.step, clock.done)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(clock.lr(recipe.peak_lr, recipe.warmup_steps))
        model.zero_grad()
        clock.tick()
        ema_update(ema, model, recipe.ema_decay, clock.step)
        # Kept on the device: reading it would make a GPU wait in every step.
        mean_loss = loss.detach() if mean_loss is None else mean_loss.lerp(loss.detach(), 0.01)
        pause = min(recipe.save_every, clock.budget / 3)
        if clock.spent - last_save > pause or clock.done >= 1 or stopped.is_set():
            last_save = clock.spent
            state = {"model": model.state_dict(), "ema": ema.state_dict()}
            state |= {"optimizers": optimizers.state_dict()}
            save_atomic(state | {"spent": clock.spent, "step": clock.step}, path)
            note = on_save(ema, clock.step)
            rate = clock.step / max(clock.spent, 1e-9)
            print(
                f"{path.stem} step {clock.step}, {clock.spent / 60:.1f} min, {rate:.2f} steps/s: "
                f"loss {float(mean_loss):.4f} {note}",
                flush=True,
            )
            clock._last = time.monotonic()  # neither saving nor drawing is training
    return ema


def load_ema(path: Path, model: nn.Module) -> nn.Module:
    """`model` with the averaged weights that `train` left in `path`, for use."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["ema"])
    return model.requires_grad_(False).eval()
