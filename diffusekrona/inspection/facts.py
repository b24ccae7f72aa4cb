"""What an adapter does to each layer, in numbers, computed from its factors.

The singular values of A (x) B are all products of one of A's and one of B's, and the Frobenius norm
is the product of the norms, so nothing of the layer's size is formed for a single Kronecker
product. A LoRA's up @ down is reduced by two QR decompositions to an (r, r) core; any other
method's delta W is first written as a LoRA, exactly.

Effective rank is that of Roy and Vetterli, "The effective rank", 2007: exp of the entropy of the
singular values taken as shares of their sum. That of A (x) B is the product of A's and B's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftConfig

from ..adapters.deltas import KronDelta, to_low_rank
from ..adapters.file import Adapter
from ..adapters.groups import Place, place_of
from ..adapters.methods import method_of
from ..bases.families import identify
from ..bases.loading import load_part
from ..bases.names import without_text_model
from ..bases.resolve import resolve_base
from ..common.errors import UserError
from ..krona.factors import Pair
from ..krona.functional import kron_weight


@dataclass
class LayerFacts:
    """One adapted layer.

    Attributes:
        place: its block, attention and projection.
        factors: (a1, a2) of Kronecker products, KronA's or LoKr's; None for any other method.
        rank_limit: the highest rank of delta W, a LoRA's r or min(a1,a2)*min(b1,b2).
        norm: Frobenius norm of delta W; base_norm: of W, where a base was given.
        singular: singular values of delta W, falling; those of A and of B for a single product.
        a, b: the factors (terms, …), scale not in them; without factors, up and down of delta W as
            a LoRA, scale in them.
    """

    component: str
    name: str
    place: Place
    shape: tuple[int, int]
    factors: Pair | None
    rank_limit: int
    parameters: int
    scale: float
    output_order: str
    a: torch.Tensor
    b: torch.Tensor
    norm: float
    singular: torch.Tensor
    singular_a: torch.Tensor | None = None
    singular_b: torch.Tensor | None = None
    base_norm: float | None = None

    @property
    def relative(self) -> float | None:
        """||delta W|| / ||W||, or None without a base."""
        return None if self.base_norm is None else self.norm / max(self.base_norm, 1e-30)


@dataclass
class Facts:
    """All layers of one adapter, under the name it is shown by."""

    label: str
    method: str
    layers: list[LayerFacts]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def norm(self) -> float:
        return math.sqrt(sum(layer.norm**2 for layer in self.layers))


def facts_of(adapter: Adapter, label: str) -> Facts:
    """Every layer's facts, in the file's order of blocks: down, mid, up, text encoders."""
    layers = []
    for component, config in adapter.configs.items():
        tensors = adapter.component_tensors(component)
        for name, own in sorted(adapter.method.by_layer(tensors).items()):
            place = place_of(component, name, adapter.base_family)
            layers.append(_layer(component, name, place, config, own))
    layers.sort(key=lambda layer: (_block_rank(layer.place.block), _natural(layer.name)))
    return Facts(label, adapter.method.name, layers, adapter.metadata)


def _layer(
    component: str, name: str, place: Place, config: PeftConfig, tensors: dict[str, torch.Tensor]
) -> LayerFacts:
    common = (component, name, place)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    delta = method_of(config).delta_of(tensors, config, name)
    if not isinstance(delta, KronDelta):
        low = to_low_rank(delta)
        core = torch.linalg.qr(low.up.double())[1] @ torch.linalg.qr(low.down.double().t())[1].t()
        singular = torch.linalg.svdvals(core)
        return LayerFacts(
            *common, low.shape, None, low.rank, parameters, 1.0, "kron", low.up, low.down,
            singular.norm().item(), singular,
        )  # fmt: skip
    a, b, scale, order = delta.a, delta.b, delta.scale, delta.output_order
    (terms, a1, a2), (_, b1, b2) = a.shape, b.shape
    parts = None, None
    if terms == 1:
        parts = torch.linalg.svdvals(a[0].double()), torch.linalg.svdvals(b[0].double())
        singular = torch.outer(*parts).flatten().sort(descending=True).values * abs(scale)
    else:
        singular = _singular_of_dense(kron_weight(a, b).double()) * abs(scale)
    rank_limit = min(terms * min(a1, a2) * min(b1, b2), *delta.shape)
    return LayerFacts(
        *common, delta.shape, (a1, a2), rank_limit, parameters, scale, order, a, b,
        singular.norm().item(), singular, *parts,
    )  # fmt: skip


def _singular_of_dense(weight: torch.Tensor) -> torch.Tensor:
    gram = weight @ weight.t() if weight.shape[0] <= weight.shape[1] else weight.t() @ weight
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def _block_rank(block: str) -> tuple[int, list[tuple[int, str]]]:
    kinds, kind = ("down", "mid", "up"), block.partition(".")[0]
    return (kinds.index(kind) if kind in kinds else 3, _natural(block))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p) if p.isdecimal() else -1, p) for p in name.split(".")]


def add_base_norms(facts: Sequence[Facts], base: str, config: str | None = None) -> None:
    """Fill in ||W|| of every adapted layer from the base model.

    Raises:
        UserError: no such base, another family, or a layer that it lacks.
    """
    place = resolve_base(base, config)
    family, _ = identify(place)
    for one in facts:
        if one.metadata.get("base_family", family.name) != family.name:
            trained_for = one.metadata["base_family"]
            raise UserError(f"{one.label} was trained for {trained_for}, {base} is {family.name}.")
    layers = [layer for one in facts for layer in one.layers]
    for component in dict.fromkeys(layer.component for layer in layers):
        # In half precision: a norm needs no more, and the largest denoiser would be 10 GB.
        options = {"torch_dtype": torch.float16}
        if component == family.denoiser:
            model = family.load_denoiser(place, **options)
        else:
            model = load_part(place, family.text_encoders[component], component, **options)
        modules = dict(model.named_modules())
        for layer in (each for each in layers if each.component == component):
            module = modules.get(layer.name) or modules.get(without_text_model(layer.name))
            if module is None or tuple(module.weight.shape) != layer.shape:
                raise UserError(f"{base} has no {component} layer {layer.name} of {layer.shape}.")
            layer.base_norm = module.weight.detach().to(torch.float32).norm().item()


# --- sums over layers -----------------------------------------------------------------------------


def effective_rank(singular: torch.Tensor) -> float:
    """exp(entropy of the singular values as shares); 0 for a zero matrix."""
    total = singular.sum()
    if total <= 0:
        return 0.0
    shares = singular / total
    return torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()).item()


def rank_holding(singular: torch.Tensor, share: float) -> int:
    """The least rank whose best approximation holds `share` of ||delta W||^2."""
    energy = singular.square().cumsum(0)
    if energy[-1] <= 0:
        return 0
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


def shares(layers: Iterable[LayerFacts], kind: str) -> dict[str, float]:
    """Group of a kind (blocks, projections, attention) to its share of the summed ||delta W||^2."""
    sums: dict[str, float] = {}
    for layer in layers:
        key = layer.place.group(kind)
        sums[key] = sums.get(key, 0.0) + layer.norm**2
    total = sum(sums.values())
    return {key: value / total if total > 0 else 0.0 for key, value in sums.items()}
