"""A frozen model that stays in host memory: each layer is on the device while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_DEVICE = "_layers_compute_on"


def offload_layers(model: nn.Module, device: torch.device) -> None:
    """Keep a model's weights in host memory; each layer has them on `device` while it is called."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=device)
    setattr(model, _DEVICE, device)


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs: its own device, or that of its layers if it is offloaded."""
    device: torch.device = getattr(model, _DEVICE, None) or model.device
    return device


def largest_layer_bytes(model: nn.Module) -> int:
    """What an offloaded model has on the device at once: its largest layer's weights."""
    own = (sum(p.nbytes for p in part.parameters(recurse=False)) for part in model.modules())
    return max(own, default=0)
