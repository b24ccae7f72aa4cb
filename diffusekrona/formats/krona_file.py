"""Our own adapter file (`adapters.file`), to and from deltas."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig

from ..adapters.deltas import Delta, KronDelta, pad_terms
from ..adapters.file import Adapter, config_to_json, read_adapter
from ..adapters.krona_method import KRONA
from ..adapters.layout import metadata_head
from ..adapters.methods import method_of
from ..bases.components import is_text_encoder
from ..bases.names import with_text_model
from ..common.errors import UserError
from ..common.tensor_files import stored
from ..krona import KronAConfig
from .delta_set import DeltaSet, Hints, by_component, find_family, layers_from_metadata

CARRIED = (
    "base_model",
    "base_sha256",
    "single_file_config",
    "prediction_type",
    "rescale_betas_zero_snr",
    "instance_prompt",
    "class_prompt",
    "steps",
    "learning_rate",
    "mixed_from",
    "license",
)


def read(path: Path, hints: Hints) -> DeltaSet:
    """An adapter file of this package, KronA or LoRA. Raises UserError."""
    adapter = read_adapter(path)
    layers: dict[str, Delta] = {}
    for component, config in adapter.configs.items():
        tensors = adapter.component_tensors(component)
        for inner, delta in component_deltas(tensors, config, path).items():
            layers[canonical(component, inner)] = delta
    dtypes = Counter(t.dtype for t in adapter.tensors.values())
    return DeltaSet(
        layers,
        f"DiffuseKronA adapter ({adapter.method.name})",
        find_family(layers, [], path, adapter.metadata, hints),
        dict(adapter.metadata),
        hints.layers_per_block or layers_from_metadata(adapter.metadata),
        dtypes.most_common(1)[0][0],
    )


def canonical(component: str, path: str) -> str:
    """A module path to a layer name. CLIP's may lack `text_model.`, as transformers now has it."""
    return f"{component}.{with_text_model(path) if is_text_encoder(component) else path}"


def component_deltas(
    tensors: Mapping[str, torch.Tensor], config: PeftConfig, where: Path | str
) -> dict[str, Delta]:
    """PEFT-named tensors (`<path>.krona_a`, `<path>.lora_A.weight`) to deltas, by module path.

    Raises:
        UserError: factors that do not belong together, or a config that makes no sense.
    """
    method = method_of(config)
    deltas: dict[str, Delta] = {}
    for path, own in method.by_layer(tensors).items():
        try:
            deltas[path] = method.delta_of(own, config, path)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return deltas


def to_adapter(source: DeltaSet, dtype: torch.dtype | None = None) -> Adapter:
    """Kronecker deltas as an `Adapter`, which `adapters.file` writes and loads.

    Raises:
        UserError: layers that are not Kronecker products, or not of one row order.
    """
    layers = source.kronecker_layers()
    orders = {d.output_order for d in layers.values()}
    if len(orders) > 1:
        raise UserError("The layers differ in row order, but an adapter has only one: write LoRA.")
    terms = max(d.terms for d in layers.values())
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    for component, own in by_component(layers).items():
        deltas = {path: pad_terms(delta, terms) for path, delta in own.items()}
        configs[component], factors = _component(deltas, terms, orders.copy().pop())
        prefix = f"{component}." if is_text_encoder(component) else ""
        tensors |= {prefix + key: tensor for key, tensor in factors.items()}
    metadata = {key: source.metadata[key] for key in CARRIED if key in source.metadata}
    values = {name: config_to_json(config) for name, config in configs.items()}
    metadata |= metadata_head(KRONA.name, values, source.family)
    metadata["layers_per_block"] = str(source.layers_per_block)
    metadata["converted_from"] = source.title
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
