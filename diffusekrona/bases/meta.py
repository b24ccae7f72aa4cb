"""Components at full size on torch's meta device: shapes and counts without weights or memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..common.errors import UserError, shortened

Shapes = dict[str, tuple[int, int]]  # module name to (out_features, in_features), in model order


@contextmanager
def trusting_no_config(what: str) -> Generator[None]:
    """Have whatever a damaged config leads to be one line. What the libraries raise for one is of
    every kind: TypeError, AttributeError, RuntimeError, OverflowError …

    Raises:
        UserError: naming `what`.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = shortened(f"{type(error).__name__}: {error}", 200)
        raise UserError(f"No model can be made from {what} ({reason}): is it damaged?") from error


def build_empty(kind: str, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """A frozen component of the full size with no memory behind its weights.

    Args:
        kind: class name in diffusers or transformers, such as "AutoencoderKL" or "CLIPTextModel".
        config: as its config.json has it.
        dtype: of its weights; fp32 if not given.

    Raises:
        UserError: no such component can be made from the config.
    """
    import diffusers
    import transformers

    with torch.device("meta"), trusting_no_config(f"the config of {kind}"):
        if hasattr(diffusers, kind):
            model = getattr(diffusers, kind).from_config(dict(config))
        else:
            cls = getattr(transformers, kind)
            model = cls(cls.config_class.from_dict(dict(config)))
    if dtype is not None:
        nn.Module.to(model, dtype)  # without the warnings of diffusers' own
    return model.requires_grad_(False)


def linear_layers(model: nn.Module) -> Shapes:
    """Every linear layer of a model: what adapters can be put on."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
