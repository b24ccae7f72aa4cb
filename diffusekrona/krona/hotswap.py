"""Another KronA adapter in the place of a loaded one, on a compiled model too, without recompiling.

`peft.utils.hotswap` knows LoRA only. Here the new factors are copied into the old ones' memory, and
a scale of their own goes into A, so that nothing that `torch.compile` guards on changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.save_and_load import load_peft_weights
from torch import nn

from .config import KronAConfig
from .layer import KronALinear


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str,
    adapter_name: str = "default",
    torch_device: str | None = None,
    **kwargs: Any,
) -> None:
    """Replace a loaded adapter's numbers by those of a PEFT folder; arguments as in PEFT.

    Raises:
        ValueError: the folder holds another method, or what `hotswap_adapter_from_state_dict`
            refuses.
    """
    config = PeftConfig.from_pretrained(model_name_or_path, **kwargs)
    if not isinstance(config, KronAConfig):
        raise ValueError(f"{model_name_or_path} holds a {type(config).__name__}, not KronA's.")
    tensors = load_peft_weights(model_name_or_path, device=torch_device or "cpu", **kwargs)
    hotswap_adapter_from_state_dict(model, tensors, adapter_name, config)


@torch.no_grad()
def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    adapter_name: str,
    config: KronAConfig,
) -> None:
    """Replace a loaded adapter's numbers by tensors named `<module path>.krona_a` and `.krona_b`.

    The module paths may begin with `base_model.model.`, PEFT's prefix. The adapter's configuration
    stays: a scale other than its own goes into A.

    Raises:
        ValueError: an adapter that is not loaded or is merged, other layers, factors of other
            shapes, or another row order. Nothing is changed then.
    """
    layers = {
        _bare(name): module
        for name, module in model.named_modules()
        if isinstance(module, KronALinear) and adapter_name in module.krona_a
    }
    tensors = {_bare(key): tensor for key, tensor in state_dict.items()}
    wanted = {f"{name}.krona_{factor}" for name in layers for factor in "ab"}
    if not layers:
        raise ValueError(f"No KronA adapter named {adapter_name!r} is loaded.")
    if set(tensors) != wanted:
        other = sorted(set(tensors) ^ wanted)[0]
        raise ValueError(f"A hot swap needs the same layers in both adapters; {other} differs.")
    for name, layer in layers.items():
        _check(name, layer, tensors, adapter_name, config)
    for name, layer in layers.items():
        ratio = config.scale / layer.scale[adapter_name]
        layer.krona_a[adapter_name].copy_(tensors[f"{name}.krona_a"] * ratio)
        layer.krona_b[adapter_name].copy_(tensors[f"{name}.krona_b"])


def _check(
    name: str,
    layer: KronALinear,
    tensors: Mapping[str, torch.Tensor],
    adapter_name: str,
    config: KronAConfig,
) -> None:
    if adapter_name in layer.merged_adapters:
        raise ValueError(f"Adapter {adapter_name!r} is merged: unmerge it before a hot swap.")
    if config.output_order != layer.output_order[adapter_name] or not layer.scale[adapter_name]:
        raise ValueError("A hot swap needs the same row order, and a scale other than 0.")
    for factor in ("krona_a", "krona_b"):
        have = getattr(layer, factor)[adapter_name].shape
        new = tensors[f"{name}.{factor}"].shape
        if have != new:
            raise ValueError(
                f"A hot swap needs factors of the same shapes; {name}.{factor} is {tuple(have)}, "
                f"the new one {tuple(new)}."
            )


def _bare(name: str) -> str:
    return name.removeprefix("_orig_mod.").removeprefix("base_model.model.")
