"""What of a training step can be counted: the same on every machine, however busy it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNELS = ("_unsafe_view", "detach", "empty.memory_format", "empty_strided", "empty_like")


def saved_bytes(run: Callable[[], Any], model: torch.nn.Module) -> int:
    """Bytes that a forward pass keeps for backward beside parameters, each storage once.

    Args:
        run: runs the forward pass, and may run the backward pass.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values())


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = operation(*args, **(kwargs or {}))
        name = operation.name()
        if not operation.is_view and name.removeprefix("aten::") not in NO_KERNELS:
            self.count += 1
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, torch.Tensor):  # one that is expanded is read once
                    size = tensor.numel() * tensor.element_size()
                    self.bytes += min(size, tensor.untyped_storage().nbytes())
        return result
