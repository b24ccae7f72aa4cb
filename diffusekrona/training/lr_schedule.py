"""Learning-rate schedules: diffusers' formulas, by themselves, so that a plan can tell the rates
without torch. A run follows the same functions (and a test compares them with diffusers').
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..common.errors import UserError
from .settings import OptimisationSettings

POLYNOMIAL_END = 1e-7  # learning rate at the end of the polynomial schedule


def rate_factor(
    optimisation: OptimisationSettings, steps: int, rate: float
) -> Callable[[int], float]:
    """What multiplies the learning rate `rate` at optimizer step 0, 1, 2 … of a run of `steps`.

    Raises:
        UserError: step rules that cannot be read; a rate below the polynomial schedule's end.
    """
    name, warmup = optimisation.lr_scheduler, optimisation.lr_warmup_steps
    if name == "constant":
        return lambda step: 1.0
    if name == "piecewise_constant":
        return _piecewise(optimisation.lr_step_rules)
    if name == "polynomial" and rate <= POLYNOMIAL_END:
        raise UserError(f"--lr_scheduler polynomial ends at {POLYNOMIAL_END}: start above it.")
    rest = max(1, steps - warmup)
    after = {
        "constant_with_warmup": lambda step: 1.0,
        "linear": lambda step: max(0.0, (rest - step) / rest),
        "cosine": lambda step: _cosine(step / rest),
        "cosine_with_restarts": lambda step: (
            _cosine(optimisation.lr_num_cycles * (step / rest) % 1.0) if step < rest else 0.0
        ),
        "polynomial": lambda step: _polynomial(step / rest, optimisation.lr_power, rate),
    }[name]
    return lambda step: step / max(1, warmup) if step < warmup else after(step - warmup)


def make_lr_scheduler(optimisation: OptimisationSettings, optimizer: Any, steps: int) -> Any:
    """torch's learning-rate scheduler for `steps` optimizer steps."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, rate_factor(optimisation, steps, optimizer.defaults["lr"]))


def stepped(accelerator: Any, optimizer: Any) -> bool:
    """Step the optimizer; whether the factors may have moved: with fp16, not where the gradients
    overflowed.

    The fused AdamW skips such a step inside its kernel, which accelerate does not see. The loss
    scale, which is lowered after each of them, tells.
    """
    scaler = accelerator.scaler
    before = scaler.get_scale() if scaler is not None else None
    optimizer.step()
    if before is None or not accelerator.sync_gradients:
        return not accelerator.optimizer_step_was_skipped
    return scaler.get_scale() >= before


def move_to(lr_scheduler: Any, position: int) -> None:
    """Have the next step be the one numbered `position`, by this run's own schedule: it may have
    been lengthened since the state was saved."""
    lr_scheduler.last_epoch = position
    groups = lr_scheduler.optimizer.param_groups
    rates = zip(groups, lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
    for group, base, factor in rates:
        group["lr"] = base * factor(position)
    lr_scheduler._last_lr = [group["lr"] for group in groups]


def _cosine(done: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


def _polynomial(done: float, power: float, rate: float) -> float:
    if done > 1:
        return POLYNOMIAL_END / rate
    return ((rate - POLYNOMIAL_END) * (1 - done) ** power + POLYNOMIAL_END) / rate


def _piecewise(rules: str) -> Callable[[int], float]:
    """ "1:500,0.1": 1 before step 500, 0.1 from there on."""
    *pieces, last = rules.split(",")
    try:
        until = {int(step): float(value) for value, step in (p.split(":") for p in pieces)}
        final = float(last)
    except ValueError as error:
        raise UserError(
            f"--lr_step_rules {rules!r}: write factors with the steps they end at and a last "
            'factor, as "1:500,0.1".'
        ) from error
    return lambda step: next((until[end] for end in sorted(until) if step < end), final)
