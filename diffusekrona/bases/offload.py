"""Frozen models in host memory: each layer or block is on the device while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .meta import weight_bytes

_DEVICE = "_layers_compute_on"


def offload_layers(model: nn.Module, device: torch.device) -> None:
    """Keep a model's weights in host memory; each layer has them on `device` while it is called."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=device)
    setattr(model, _DEVICE, device)


def offload_blocks(denoiser: nn.Module, device: torch.device) -> None:
    """Keep a denoiser's weights in host memory; each block has them on `device` while it computes
    and the next one's are copied (diffusers' group offloading).

    For drawing: a block's adapters move with it, out of an optimizer's reach.
    """
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        denoiser,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def offloaded_bytes(model: nn.Module) -> int:
    """What a denoiser of `offload_blocks` has on the device at once: two neighbouring blocks, of
    which one computes and one is copied, and everything outside of the blocks."""
    lists = [part for part in model.children() if isinstance(part, nn.ModuleList)]
    blocks = [weight_bytes(block) for part in lists for block in part]
    pairs = zip(blocks, [*blocks[1:], 0], strict=True)
    return weight_bytes(model) - sum(blocks) + max(map(sum, pairs), default=0)


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs: its own device, or that of its layers if it is offloaded."""
    device: torch.device = getattr(model, _DEVICE, None) or model.device
    return device


def largest_layer_bytes(model: nn.Module) -> int:
    """What an offloaded model has on the device at once: its largest layer's weights."""
    own = (sum(p.nbytes for p in part.parameters(recurse=False)) for part in model.modules())
    return max(own, default=0)
