"""Values that suit a base, a card and a hurry, beside those that follow from the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bases.families import FLUX2_KLEIN, SD1, SDXL, Z_IMAGE

_CURVE = {"validation_loss_steps": 100}  # the loss at fixed timesteps, on the tab Watch
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "Try it out: bundled base, a minute on a laptop": {
        "pretrained_model_name_or_path": "pocket",
        "max_train_steps": 150,
        "validation_steps": 50,
        "validation_inference_steps": 12,
        "validation_loss_steps": 25,
    },
    "Bundled base, all steps": {"pretrained_model_name_or_path": "pocket", **_CURVE},
    "Stable Diffusion 1.5": {"pretrained_model_name_or_path": SD1.default_base, **_CURVE},
    "SDXL, an easy subject": {
        "pretrained_model_name_or_path": SDXL.default_base,
        "max_train_steps": 300,
        **_CURVE,
    },
    "SDXL, a complex subject or prompt": {
        "pretrained_model_name_or_path": SDXL.default_base,
        **_CURVE,
    },
    "SDXL on a small GPU": {
        "pretrained_model_name_or_path": SDXL.default_base,
        "low_vram": True,
        **_CURVE,
    },
    "FLUX.2-klein": {"pretrained_model_name_or_path": FLUX2_KLEIN.default_base, **_CURVE},
    "Z-Image on a small GPU": {
        "pretrained_model_name_or_path": Z_IMAGE.default_base,
        "low_vram": True,
        **_CURVE,
    },
}
