"""The device that a program computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch


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
