"""What adapters' files are called, and the metadata by which one says what it is (`file.py`).

Importing this module imports neither torch nor PEFT, so that `--help` stays fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..common.weights import is_weight

LAYOUT_VERSION = "1"
ADAPTER_FILE = "adapter.safetensors"  # the name that a run's folder holds it under
PEFT_WEIGHTS = "adapter_model.safetensors"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
FILES = (ADAPTER_FILE, PEFT_WEIGHTS, LORA_WEIGHTS)  # the first that is there
WEIGHT_KEY = "default_weight"  # in a file's metadata: the weight to draw with


def metadata_head(
    method: str, configs: Mapping[str, Mapping[str, Any]], family: str | None = None
) -> dict[str, str]:
    """The metadata by which an adapter file says what it is.

    Args:
        method: its name in `methods.METHODS`.
        configs: component to its PEFT config, as `file.config_to_json` gives it.
        family: of base models, where it is known.
    """
    head = {
        "format": "pt",
        "diffusekrona": LAYOUT_VERSION,
        "method": method,
        "config": json.dumps(configs),
    }
    return head | ({"base_family": family} if family else {})


def default_weight(metadata: Mapping[str, str]) -> float:
    """The weight at which an adapter's file asks to be drawn, as `diffusekrona.choose` chose it."""
    try:
        weight = float(metadata.get(WEIGHT_KEY, ""))
    except ValueError:
        return 1.0
    return weight if is_weight(weight) else 1.0
