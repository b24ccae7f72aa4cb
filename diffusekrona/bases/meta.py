"""Components at full size on torch's meta device: shapes and counts without weights or memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Shapes = dict[str, tuple[int, int]]  # module name to (out_features, in_features), in model order


def build_empty(kind: str, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """A frozen component of the full size with no memory behind its weights.

    Args:
        kind: class name in diffusers or transformers, such as "AutoencoderKL" or "CLIPTextModel".
        config: as its config.json has it.
        dtype: of its weights; fp32 if not given.
    """
    import diffusers
    import transformers

    with torch.device("meta"):
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
