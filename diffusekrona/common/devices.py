"""The device that a program computes on, and the processes that share its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


def process_state(device: str | None) -> PartialState:
    """accelerate's account of the processes, for a program that draws on `device` (None: its own).

    Processes on CPUs count only when accelerate is told that they are; it reads the launcher's
    answer for training, but not here.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))


def choose_device(name: str | None, default: torch.device) -> torch.device:
    """Raises UserError for a device that this machine does not have."""
    import torch

    try:
        device = torch.device(name) if name else default
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    return device
