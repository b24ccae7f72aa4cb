"""Learning-rate schedules: diffusers', by the flags' settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..common.errors import UserError
from .settings import OptimisationSettings

POLYNOMIAL_END = 1e-7  # learning rate at the end of diffusers' polynomial schedule


def make_lr_scheduler(optimisation: OptimisationSettings, optimizer: Any, steps: int) -> Any:
    """torch's learning-rate scheduler for `steps` optimizer steps.

    Raises:
        UserError: step rules that cannot be read; a rate below the polynomial schedule's end.
    """
    from diffusers.optimization import get_scheduler

    rate = optimizer.defaults["lr"]
    if optimisation.lr_scheduler == "polynomial" and rate <= POLYNOMIAL_END:
        raise UserError(
            f"--lr_scheduler polynomial ends at {POLYNOMIAL_END}: --learning_rate {rate} must be "
            "above it."
        )
    try:
        return get_scheduler(
            optimisation.lr_scheduler,
            optimizer,
            step_rules=optimisation.lr_step_rules,
            num_warmup_steps=optimisation.lr_warmup_steps,
            num_training_steps=steps,
            num_cycles=optimisation.lr_num_cycles,
            power=optimisation.lr_power,
        )
    except ValueError as error:
        if optimisation.lr_scheduler != "piecewise_constant":
            raise
        raise UserError(
            f"--lr_step_rules {optimisation.lr_step_rules!r}: write factors with the steps they "
            'end at and a last factor, as "1:500,0.1".'
        ) from error


def rate_factor(
    optimisation: OptimisationSettings, steps: int, rate: float
) -> Callable[[int], float]:
    """What multiplies the learning rate `rate` at optimizer step 0, 1, 2 … of a run of `steps`.

    Raises:
        UserError: as `make_lr_scheduler`.
    """
    unused = torch.optim.SGD([torch.zeros(1)], lr=rate)
    factor: Callable[[int], float] = make_lr_scheduler(optimisation, unused, steps).lr_lambdas[0]
    return factor


def move_to(lr_scheduler: Any, position: int) -> None:
    """Have the next step be the one numbered `position`, by this run's own schedule: it may have
    been lengthened since the state was saved."""
    lr_scheduler.last_epoch = position
    groups = lr_scheduler.optimizer.param_groups
    rates = zip(groups, lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
    for group, base, factor in rates:
        group["lr"] = base * factor(position)
    lr_scheduler._last_lr = [group["lr"] for group in groups]
