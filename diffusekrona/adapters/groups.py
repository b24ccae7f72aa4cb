"""Groups of adapted layers (blocks, projections, self- and cross-attention) and their weights.

A weight of 0 switches a group off, 1 leaves it as trained. A layer's delta is multiplied by the
weights of all the groups that it belongs to:

    put_adapter(pipeline, adapter, "dog")
    set_group_weights(pipeline, "dog", GroupWeights(blocks={"up.1": 0.5}, projections={"k": 0}))
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..bases.components import is_text_encoder
from ..bases.families import FAMILIES, components_of, family_name
from ..bases.places import Place
from ..common.errors import UserError
from ..common.weights import is_weight
from .file import Adapter, carries
from .method import Method
from .methods import method_of

KINDS = ("projections", "attention", "blocks")  # of groups, and the flags that weight them


def place_of(component: str, name: str, family: str | None = None) -> Place:
    """The place of a layer, from its name in diffusers' and transformers' models.

    Args:
        family: of the base; by default the first whose denoiser is the component.
    """
    if not is_text_encoder(component):
        known = FAMILIES.get(family or "")
        candidates = [known] if known else FAMILIES.values()
        for each in candidates:
            if each.denoiser == component:
                return each.place(name)
    attention = "text" if "self_attn" in name.split(".") else "other"
    end = re.search(r"(?:^|[._])([qkv])_proj$|out_proj$", name)
    numbers = re.findall(r"\.layers\.(\d+)", name)
    return Place(component, ".".join(numbers), attention, (end[1] or "o") if end else "ff")


@dataclass(frozen=True)
class GroupWeights:
    """Weights of groups by name; groups that are not named have weight 1."""

    blocks: Mapping[str, float] = field(default_factory=dict)
    projections: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in KINDS)

    def of(self, place: Place) -> float:
        """The product of the weights of a layer's groups."""
        return math.prod(getattr(self, kind).get(place.group(kind), 1.0) for kind in KINDS)

    def check(self, places: Iterable[Place]) -> None:
        """Refuse groups that none of the layers belongs to.

        Raises:
            UserError: naming the group and those that there are.
        """
        places = list(places)
        for kind in KINDS:
            there = {place.group(kind) for place in places}
            for name in getattr(self, kind):
                if name not in there:
                    raise UserError(
                        f"--{kind} {name}: the adapter has no such group; it has "
                        f"{', '.join(sorted(there))}."
                    )

    def __str__(self) -> str:
        pairs = (pair for kind in KINDS for pair in getattr(self, kind).items())
        return ", ".join(f"{name}={weight:g}" for name, weight in pairs)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The weights that were given, for a picture's recipe."""
        return {kind: dict(getattr(self, kind)) for kind in KINDS if getattr(self, kind)}


def parse_weights(flag: str, texts: Sequence[str]) -> dict[str, float]:
    """["up.1=0.5", "mid=0"] to {"up.1": 0.5, "mid": 0.0}.

    Raises:
        UserError: a piece that is not name=number.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, sign, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (sign and name.strip() and is_weight(weight)):
            raise UserError(f"--{flag} {text}: write name=weight, such as {_EXAMPLES[flag]}.")
        weights[name.strip()] = weight
    return weights


_EXAMPLES = {"blocks": "up.1=0.5", "projections": "k=0", "attention": "self=0"}


def parse_groups(
    blocks: Sequence[str] = (), projections: Sequence[str] = (), attention: Sequence[str] = ()
) -> GroupWeights:
    """The three flags of the programs. Raises UserError for one that is not name=weight."""
    given = {"blocks": blocks, "projections": projections, "attention": attention}
    return GroupWeights(**{kind: parse_weights(kind, texts) for kind, texts in given.items()})


def places_of(adapter: Adapter) -> set[Place]:
    """The positions of an adapter's layers."""
    return {
        place_of(component, name, adapter.base_family)
        for component in adapter.configs
        for name in adapter.method.by_layer(adapter.component_tensors(component))
    }


def set_group_weights(
    model: Any,
    adapter_name: str,
    groups: GroupWeights,
    weight: float = 1.0,
    allow_unknown: bool = False,
) -> None:
    """Set the weight of every layer of an adapter that is not merged: `weight` times its groups'.

    Args:
        model: a denoiser, a pipeline or a mapping of components that carries the adapter.
        allow_unknown: ignore groups that the adapter does not have, as when several share weights.

    Raises:
        UserError: a group that the adapter does not have, or a weight that its method cannot have;
            nothing is changed then.
        ValueError: no such adapter, or one that is merged already.
    """
    family, methods = family_name(model), methods_on(model, adapter_name)
    layers = [
        (methods[component], place_of(component, name, family), layer)
        for component, name, layer in layers_with(model, adapter_name)
    ]
    if not layers:
        raise ValueError(f"The model carries no adapter named {adapter_name!r}.")
    if any(adapter_name in layer.merged_adapters for _, _, layer in layers):
        raise ValueError(f"The adapter {adapter_name!r} is merged: set weights before.")
    if not allow_unknown:
        groups.check(place for _, place, _ in layers)
    weights = [weight * groups.of(place) for _, place, _ in layers]
    for (method, _, _), own in zip(layers, weights, strict=True):
        method.check_weight(own)
    for (method, _, layer), own in zip(layers, weights, strict=True):
        method.set_weight(layer, adapter_name, own)


def methods_on(model: Any, adapter_name: str) -> dict[str, Method]:
    """The method of an adapter by the components that carry it."""
    return {
        component: method_of(part.peft_config[adapter_name])
        for component, part in components_of(model).items()
        if adapter_name in getattr(part, "peft_config", {})
    }


def layers_with(model: Any, adapter_name: str) -> Iterator[tuple[str, str, Any]]:
    """(component, name, layer) of every layer that carries the adapter: the base's name, also
    where the layer is inside another method's."""
    for component, part in components_of(model).items():
        for name, module in part.named_modules():
            if isinstance(module, BaseTunerLayer) and carries(module, adapter_name):
                yield component, re.sub(r"(\.base_layer)+$", "", name), module


@contextmanager
def without_adapters(models: Iterable[nn.Module]) -> Generator[None]:
    """The bare base for a while, in the middle of training: live adapters take no part, and their
    factors go on requiring gradients, which PEFT's own switch would change."""
    layers: list[Any] = [m for model in models for m in model.modules()]
    layers = [m for m in layers if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def enable_adapters(model: nn.Module, on: bool) -> None:
    """Let live adapters take part, or leave the bare base; merged ones are not touched."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and module.disable_adapters == on:
            module.enable_adapters(on)
