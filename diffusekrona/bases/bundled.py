"""The base models that ship with the package, and how a run on them, or on any base, usually is.

Importable without torch: scripts/common/launch.sh asks here what to start a run with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.paths import as_path

BUNDLED = Path(__file__).parents[1] / "pocket" / "models"

# Training settings of a usual run on a GPU, as the scripts have them; of the bundled bases on a
# CPU. The learning rate is the method's.
USUAL_TRAINING: Mapping[str, Any] = {
    "max_train_steps": 1000,
    "gradient_accumulation_steps": 4,
    "mixed_precision": "fp16",
}
BUNDLED_TRAINING: Mapping[str, Any] = {
    "a1": 2,  # nine of twelve held-out things came out more alike than with 4: docs/pocket.md
    "lr_scheduler": "cosine",
    "max_train_steps": 900,
    "max_relative_norm": 0.15,  # a rate this high would otherwise overwrite the base
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "train_text_encoder": False,
    "validation_steps": 100,
}


def bundled_models() -> list[str]:
    """Names of the base models that ship with the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "model_index.json").is_file())


def is_bundled(base: str) -> bool:
    """Whether a base, by its name or its folder, is one that ships with the package."""
    return base in bundled_models() or as_path(base).resolve().parent == BUNDLED.resolve()
