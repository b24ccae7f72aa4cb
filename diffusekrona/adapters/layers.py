"""Which layers get an adapter, and the shapes of its tensors there: PEFT's own account.

The adapter is put on layers without memory (`torch.device("meta")`) that have the base model's
names and sizes, and what PEFT made is read off. So nothing here knows a method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from .method import Shape
from .methods import method_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

LayerSizes = Mapping[str, tuple[int, int]]  # layer name to (out_features, in_features)


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer of the plan: where it is, its size, a description of its adapter's size, the number
    of values in each of its trained tensors, and the multiplications that a token costs in it
    beside the base's own (None where the method computes delta W instead)."""

    component: str
    name: str
    out_features: int
    in_features: int
    factors: str
    tensors: tuple[int, ...]
    multiplications: int | None = None

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


def matching(targets: Iterable[str], layers: LayerSizes) -> dict[str, tuple[int, int]]:
    """The layers whose names end in one of `targets`, as PEFT matches a list of targets."""
    ends = tuple(targets)
    return {
        name: size
        for name, size in layers.items()
        if any(name == end or name.endswith(f".{end}") for end in ends)
    }


def tensor_shapes(config: PeftConfig, layers: LayerSizes) -> dict[str, dict[str, Shape]]:
    """Layer to tensor name to shape, for every one of `layers` that `config` adapts.

    Raises:
        UserError: the method refuses a layer, or no layer matches its targets.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model

    from ..krona import target_layers

    method, empty = method_of(config), _empty_layers(layers)
    if not target_layers(config, empty):
        wanted = getattr(config, "target_modules", None)
        ends = wanted if isinstance(wanted, str) else ", ".join(sorted(wanted or ()))
        raise UserError(f"No layer matches {ends}.")
    try:
        tensors = get_peft_model_state_dict(inject_adapter_in_model(config, empty, "default"))
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    return {
        name: {end: tuple(tensor.shape) for end, tensor in own.items()}
        for name, own in method.by_layer(tensors).items()
    }


def adapted_layers(
    configs: Mapping[str, PeftConfig], layers: Mapping[str, LayerSizes]
) -> list[AdaptedLayer]:
    """Every layer that would get an adapter, in model order.

    Args:
        configs: component to PEFT configuration.
        layers: component to its linear layers.

    Raises:
        UserError: what `tensor_shapes` refuses; the component is named.
    """
    found: list[AdaptedLayer] = []
    for component, config in configs.items():
        method = method_of(config)
        shapes = tensor_shapes(config, layers[component])
        for name, size in layers[component].items():
            if own := shapes.get(name):
                counts = tuple(math.prod(shape) for shape in own.values())
                cost = method.multiplications and method.multiplications(own)
                layer = AdaptedLayer(component, name, *size, method.size(own), counts, cost)
                found.append(layer)
    return found


def add_adapters(
    configs: Mapping[str, PeftConfig], models: Mapping[str, nn.Module], adapter_name: str
) -> list[nn.Parameter]:
    """Put the adapters on their models, everything else frozen; returns what is trained."""
    trained: list[nn.Parameter] = []
    for component, config in configs.items():
        model: Any = models[component]  # a model of diffusers or transformers
        model.requires_grad_(False)
        model.add_adapter(config, adapter_name)
        trained += [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # PEFT's LoRA takes the base's dtype
    return trained


def _empty_layers(layers: LayerSizes) -> nn.Module:
    """A module with linear layers of these names and sizes, without memory."""
    import torch
    from torch import nn

    root = nn.Module()
    with torch.device("meta"):
        for name, (out_features, in_features) in layers.items():
            *path, last = name.split(".")
            parent = root
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, nn.Linear(in_features, out_features, bias=False))
    return root
