"""KronA as a PEFT method: config, layer and tuner, over pure maths in `functional`."""

from .config import KronAConfig
from .hotswap import hotswap_adapter, hotswap_adapter_from_state_dict
from .layer import KronALinear
from .model import (
    KronAModel,
    check_factors,
    merge_and_unload,
    register_krona,
    target_layers,
    unload,
)

register_krona()

__all__ = [
    "KronAConfig",
    "KronALinear",
    "KronAModel",
    "check_factors",
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "merge_and_unload",
    "target_layers",
    "unload",
]
