"""How large an adapter's change is beside the weights that it changes: ||delta W|| / ||W||.

A fine-tune that keeps what its base knows stays at a few percent; near 1 the base is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import FiniteFloat

from ..common.json_files import check_value, parse_json
from ..krona.layer import is_plain
from .groups import layers_with, methods_on

NORMS_KEY = "relative_norms"  # in run.json and in an adapter file's metadata


@dataclass
class _Norms:
    """What is read again of a summary."""

    median: FiniteFloat
    largest: FiniteFloat


def norms_in(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary that an adapter file's metadata or a run.json holds; None if there is none."""
    found: Any = metadata.get(NORMS_KEY)
    try:
        read = parse_json(found, _Norms) if isinstance(found, str) else check_value(found, _Norms)
    except ValueError:
        return None
    return vars(read)


def relative_norms(model: Any, adapter_name: str) -> dict[str, float]:
    """Layer to ||delta W|| / ||W||, Frobenius norms, of an adapter that is on its base.

    Args:
        model: a denoiser, a pipeline or a mapping of components.

    Layers whose base is quantised are left out: their weights are codes, not numbers.
    """
    norms: dict[str, float] = {}
    methods = methods_on(model, adapter_name)
    for component, name, layer in layers_with(model, adapter_name):
        weight = layer.get_base_layer().weight
        if is_plain(weight):
            delta = methods[component].delta_norm(layer, adapter_name).detach()
            base = weight.detach().float().norm().clamp_min(1e-30)
            norms[f"{component}.{name}"] = (delta.to(base.device) / base).item()
    return norms


def summarise_norms(norms: Mapping[str, float]) -> dict[str, Any] | None:
    """Median and largest, and in which layer that is; None without any layer."""
    if not norms:
        return None
    layer = max(norms, key=norms.__getitem__)
    return {
        "median": round(median(norms.values()), 6),
        "largest": round(norms[layer], 6),
        "largest_layer": layer,
    }
