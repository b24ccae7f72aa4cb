"""Our own adapter file (see `adapter_file`), to and from deltas."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key

from ..adapter_file import LAYOUT_VERSION, Adapter, config_to_json, read_adapter
from ..errors import UserError
from ..krona import KronAConfig
from ..krona.functional import divides, nearest_pairs
from .delta_set import DeltaSet, Hints, find_family, layers_from_metadata
from .deltas import Delta, KronDelta, LowRankDelta, pad_terms
from .families import FAMILY_NAMES
from .layer_names import is_convolution
from .nearest import nearest_kron
from .tensor_files import stored

CARRIED = (
    "base_model",
    "instance_prompt",
    "class_prompt",
    "prediction_type",
    "steps",
    "learning_rate",
    "mixed_from",
    "license",
)


def read(path: Path, hints: Hints) -> DeltaSet:
    """An adapter file of ours, KronA or LoRA. Raises UserError."""
    adapter = read_adapter(path)
    layers: dict[str, Delta] = {}
    for component, config in adapter.configs.items():
        tensors = adapter.component_tensors(component)
        for path_, delta in component_deltas(tensors, config).items():
            layers[canonical(component, path_)] = delta
    dtypes = Counter(t.dtype for t in adapter.tensors.values())
    return DeltaSet(
        layers,
        f"DiffuseKronA adapter ({adapter.method})",
        find_family(layers, [], path, adapter.metadata, hints),
        dict(adapter.metadata),
        hints.layers_per_block or layers_from_metadata(adapter.metadata),
        dtypes.most_common(1)[0][0],
    )


def canonical(component: str, path: str) -> str:
    """A module path to a layer name. CLIP's may lack `text_model.`, as transformers now has it."""
    if component != "unet" and not path.startswith(("text_model.", "text_projection")):
        path = "text_model." + path
    return f"{component}.{path}"


def component_deltas(tensors: dict[str, torch.Tensor], config: PeftConfig) -> dict[str, Delta]:
    """PEFT-named tensors (`<path>.krona_a`, `<path>.lora_A.weight`) to deltas, by module path."""
    deltas: dict[str, Delta] = {}
    for key, tensor in tensors.items():
        if key.endswith(".krona_a"):
            path = key.removesuffix(".krona_a")
            a, b = tensor.float(), tensors[f"{path}.krona_b"].float()
            a, b = (a, b) if a.dim() == 3 else (a[None], b[None])
            deltas[path] = KronDelta(a, b, config.scale, config.output_order)
        elif key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            up = tensors[f"{path}.lora_B.weight"].float()
            deltas[path] = lora_delta(up, tensor.float(), lora_scale(config, path))
    return deltas


def lora_delta(up: torch.Tensor, down: torch.Tensor, scale: float) -> LowRankDelta:
    """up (out, r[, 1, 1]), down (r, in[, kh, kw]) to a delta with the scale in it."""
    kernel = tuple(down.shape[2:])
    return LowRankDelta(up.flatten(1) * scale, down.flatten(1), kernel)


def lora_scale(config: LoraConfig, path: str) -> float:
    """What PEFT multiplies a LoRA layer by. Raises UserError for a kind that is no plain LoRA."""
    if config.use_dora or config.lora_bias:
        raise UserError("A LoRA with DoRA magnitudes or biases is no delta of factors alone.")
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, path), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, path), config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def with_factors(
    source: DeltaSet,
    a1: int | None,
    a2: int | None,
    terms: int | None,
    order: str | None = None,
    drop: bool = False,
) -> DeltaSet:
    """The source as Kronecker products: as it is where it is some, else the nearest.

    Args:
        a1, a2, terms: wanted; None leaves a Kronecker source's own; any other source needs a1
            and a2, and gets one term unless told.
        order: row order wanted; None leaves a Kronecker source's own ("kron" for any other).
        drop: leave out layers that a Kronecker adapter cannot have, instead of refusing.

    Raises:
        UserError: factors that do not divide a layer, or are needed and not given; a convolution,
            unless `drop`.
    """
    for name, value in (("a1", a1), ("a2", a2), ("terms", terms)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    source = replace(source, layers=_linear_only(source, drop))
    if (
        a1 is None
        and a2 is None
        and all(
            isinstance(d, KronDelta) and (terms is None or d.terms <= terms)
            for d in source.layers.values()
        )
    ):
        return source
    wanted = {name: _wanted(name, d, a1, a2, order) for name, d in source.layers.items()}
    shapes = {d.shape for d in source.layers.values()}
    for name, delta in source.layers.items():
        rows, columns, _ = wanted[name]
        if not divides(rows, columns, *delta.shape):
            near = ", ".join(f"({m}, {n})" for m, n in nearest_pairs(rows, columns, shapes))
            raise UserError(
                f"Kronecker factors (a1={rows}, a2={columns}) do not fit {name} of "
                f"{delta.shape[0]}x{delta.shape[1]}; nearest that fit all layers: {near}."
            )
    near = {
        name: nearest_kron(delta, *wanted[name][:2], terms or 1, wanted[name][2])
        for name, delta in source.layers.items()
    }
    return replace(
        source,
        layers={name: delta for name, (delta, _) in near.items()},
        errors={name: error for name, (_, error) in near.items()},
        dtype=torch.float32,
    )


def _wanted(
    name: str, delta: Delta, a1: int | None, a2: int | None, order: str | None
) -> tuple[int, int, str]:
    if isinstance(delta, KronDelta):
        return a1 or delta.a.shape[1], a2 or delta.a.shape[2], order or delta.output_order
    if a1 is None or a2 is None:
        raise UserError(
            f"{name} is no sum of Kronecker products of one shape: choose the factors of the "
            "nearest with --a1 and --a2 (such as 4 and 64), or write LoRA or merged."
        )
    return a1, a2, order or "kron"


def _linear_only(source: DeltaSet, drop: bool) -> dict[str, Delta]:
    """The layers that are no convolutions."""
    known = FAMILY_NAMES.get(source.family or "")
    linear = known.linear_projection if known else True
    odd = [n for n, d in source.layers.items() if d.kernel or is_convolution(n, linear)]
    if odd and not drop:
        raise UserError(
            f"{len(odd)} layers are convolutions, which a Kronecker adapter of linear layers has "
            f"no place for, the first {odd[0]}: add --drop_convolutions, or write LoRA or merged."
        )
    if odd:
        source.notes.append(f"left out {len(odd)} convolutions: {', '.join(odd)}")
    return {name: delta for name, delta in source.layers.items() if name not in set(odd)}


def to_adapter(source: DeltaSet, dtype: torch.dtype | None = None) -> Adapter:
    """Kronecker deltas as an `Adapter`, which `adapter_file` writes and loads.

    Raises:
        UserError: layers that are not Kronecker products, or not of one row order.
    """
    for name, delta in source.layers.items():
        if not isinstance(delta, KronDelta):
            raise UserError(f"{name} is no sum of Kronecker products: write LoRA or merged.")
    orders = {d.output_order for d in source.layers.values()}
    if len(orders) > 1:
        raise UserError("The layers differ in row order, which one adapter has one of: write LoRA.")
    terms = max(d.terms for d in source.layers.values())
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    for component in source.components():
        deltas = {
            n.partition(".")[2]: pad_terms(d, terms)
            for n, d in source.layers.items()
            if n.startswith(component + ".")
        }
        config, factors = _component(deltas, terms, orders.copy().pop())
        configs[component] = config
        prefix = "" if component == "unet" else f"{component}."
        tensors |= {prefix + key: tensor for key, tensor in factors.items()}
    metadata = {key: source.metadata[key] for key in CARRIED if key in source.metadata}
    metadata |= {
        "format": "pt",
        "diffusekrona": LAYOUT_VERSION,
        "method": "krona",
        "config": json.dumps({name: config_to_json(c) for name, c in configs.items()}),
        "layers_per_block": str(source.layers_per_block),
        "converted_from": source.title,
    }
    if source.family:
        metadata["base_family"] = source.family
    return Adapter(stored(tensors, dtype, source.dtype), configs, metadata)


def _component(
    deltas: dict[str, KronDelta], terms: int, order: str
) -> tuple[KronAConfig, dict[str, torch.Tensor]]:
    """One component's config and tensors; a scale that all layers share stays a scale."""
    scales = {d.scale for d in deltas.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    shapes = {path: (d.a.shape[1], d.a.shape[2]) for path, d in deltas.items()}
    (a1, a2), _ = Counter(shapes.values()).most_common(1)[0]
    pattern = {re.escape(p): s for p, s in shapes.items() if s != (a1, a2)}
    config = KronAConfig(
        a1=a1,
        a2=a2,
        target_modules=sorted(deltas),
        factor_pattern=pattern,
        scale=scale,
        terms=terms,
        output_order=order,
    )
    tensors = {}
    for path, delta in deltas.items():
        a = delta.a * (delta.scale / scale if scale else 1.0)
        tensors[f"{path}.krona_a"] = (a if terms > 1 else a[0]).contiguous()
        tensors[f"{path}.krona_b"] = (delta.b if terms > 1 else delta.b[0]).contiguous()
    return config, tensors
