"""Gradient checkpointing that keeps the blocks' inputs on the device or in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def checkpoint_with(
    hooks: Callable[[], AbstractContextManager[Any]], **options: Any
) -> Callable[..., Any]:
    """A gradient checkpointing function, as diffusers' models take one, whose saved inputs go
    through the saved-tensor `hooks`; `options` are torch's `checkpoint`'s."""

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        with hooks():
            return checkpoint(block, *inputs, use_reentrant=False, **options)

    return run


def checkpoints_on_host(device: torch.device) -> Callable[..., Any]:
    """Gradient checkpointing that keeps the blocks' inputs in the host's memory."""
    pinned = device.type == "cuda"
    return checkpoint_with(lambda: torch.autograd.graph.save_on_cpu(pin_memory=pinned))
