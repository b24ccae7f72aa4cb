"""The schedules are diffusers', by the flags' settings."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from diffusekrona.common.errors import UserError
from diffusekrona.training.lr_schedule import make_lr_scheduler, rate_factor
from diffusekrona.training.settings import OptimisationSettings, Schedule


def schedule(name: str, warmup: int = 0, **more) -> OptimisationSettings:
    settings = {"lr_num_cycles": 3, "lr_power": 1.7, "lr_step_rules": "1:5,0.3:11,0.01", **more}
    return OptimisationSettings(lr_scheduler=name, lr_warmup_steps=warmup, **settings)


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("warmup", [0, 4])
def test_printed_and_used_rates_are_those_of_diffusers(name, warmup) -> None:
    args, rate, steps = schedule(name, warmup), 6e-4, 23
    theirs, ours = (torch.optim.SGD([torch.zeros(1)], lr=rate) for _ in range(2))
    reference = get_scheduler(
        name,
        theirs,
        step_rules=args.lr_step_rules,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        num_cycles=args.lr_num_cycles,
        power=args.lr_power,
    )
    scheduler = make_lr_scheduler(args, ours, steps)
    factor = rate_factor(args, steps, rate)
    for step in range(steps + 3):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == rate * factor(step)
        for each in (theirs, reference, ours, scheduler):
            each.step()


def test_settings_that_no_schedule_takes() -> None:
    with pytest.raises(UserError, match="--lr_step_rules '1:x,2'"):
        rate_factor(schedule("piecewise_constant", lr_step_rules="1:x,2"), 10, 1e-3)
    with pytest.raises(UserError, match="must be above it"):
        rate_factor(schedule("polynomial"), 10, 1e-8)
