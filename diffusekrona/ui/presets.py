"""Values that suit a base, a card and a hurry; the scripts' own, and the paper's findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_POCKET = {
    "learning_rate": 2e-3,
    "lr_scheduler": "cosine",
    "train_batch_size": 4,
    "validation_inference_steps": 12,
}
_GPU = {
    "learning_rate": 6e-4,
    "gradient_accumulation_steps": 4,
    "mixed_precision": "fp16",
}
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "Try it out: bundled base, a minute on a laptop": {
        "pretrained_model_name_or_path": "pocket",
        **_POCKET,
        "max_train_steps": 150,
        "validation_steps": 50,
    },
    "Bundled base, all steps": {
        "pretrained_model_name_or_path": "pocket",
        **_POCKET,
        "max_train_steps": 300,
        "validation_steps": 100,
    },
    "Stable Diffusion 1.5": {
        "pretrained_model_name_or_path": SD15,
        **_GPU,
        "max_train_steps": 1000,
        "train_text_encoder": True,
    },
    "SDXL, an easy subject": {
        "pretrained_model_name_or_path": SDXL,
        **_GPU,
        "max_train_steps": 300,
        "gradient_checkpointing": True,
    },
    "SDXL, a complex subject or prompt": {
        "pretrained_model_name_or_path": SDXL,
        **_GPU,
        "max_train_steps": 1000,
        "gradient_checkpointing": True,
    },
    "SDXL on a small GPU": {
        "pretrained_model_name_or_path": SDXL,
        "learning_rate": 6e-4,
        "gradient_accumulation_steps": 4,
        "max_train_steps": 1000,
        "low_vram": True,
    },
}
