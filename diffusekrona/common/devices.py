"""The device that a program computes on, and the processes that share its work."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from .errors import UserError, reason_of

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

# How long processes wait for one another: the main one may draw or score alone meanwhile.
TIMEOUT = datetime.timedelta(hours=1)


def has_bf16() -> bool:
    """Whether the GPU computes in bf16 by itself; True without one. Others imitate it, slowly."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def process_state(device: str | None) -> PartialState:
    """accelerate's account of the processes, for a program that draws on `device` (None: its own).

    On a machine without an accelerator it must be configured for CPU processes: else each of
    them would believe that it is alone, and do all of the work.
    """
    import torch
    from accelerate import PartialState

    there_is_one = torch.cuda.is_available() or torch.accelerator.is_available()
    return PartialState(cpu=device == "cpu" or not there_is_one, timeout=TIMEOUT)


def choose_device(name: str | None, default: torch.device) -> torch.device:
    """Raises UserError for a device that this machine does not have."""
    import torch

    try:
        device = torch.device(name) if name else default
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    return device
