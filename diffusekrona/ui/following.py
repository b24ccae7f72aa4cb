"""What follows from the base, the method and `--low_vram`: values to begin with, and fields that do
not apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.method import Method
from ..adapters.methods import METHODS
from ..bases.resolve import resolve_base
from ..bases.settings import BaseSettings
from ..common.settings import build, options_of
from ..training.resolved_run import (
    TEXT_SETTINGS,
    family_defaults,
    inapplicable_settings,
    usual_settings,
)
from ..training.settings import TrainSettings, low_vram_recipe
from .form import field_value

LEADING = (
    "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "revision",
    "single_file_config", "adapter_type", "low_vram",
)  # fmt: skip
FOLLOWING = (
    "a1", "a2", "learning_rate", "lr_scheduler", "max_relative_norm", "max_train_steps",
    "train_batch_size", "gradient_accumulation_steps", "resolution", "mixed_precision",
    "gradient_checkpointing", "cpu_offload_checkpointing", "quantize_base", "vae_tiling",
    "train_text_encoder", "validation_steps", "validation_inference_steps",
    "validation_guidance_scale",
)  # fmt: skip


def base_of(typed: Mapping[str, Any]) -> BaseSettings | None:
    """The base that a form's contents or values name; None if they name none."""
    names = ("pretrained_model_name_or_path", "single_file_config", "revision",
             "pretrained_vae_model_name_or_path")  # fmt: skip
    given = {name: str(typed[name]).strip() for name in names if typed.get(name)}
    return build(BaseSettings, given) if given.get("pretrained_model_name_or_path") else None


def method_of(typed: Mapping[str, Any]) -> Method | None:
    """The method that a form's contents or values name, KronA if they name none; None for one that
    does not exist."""
    return METHODS.get(str(typed.get("adapter_type") or "krona"))


def check_base(typed: Mapping[str, Any]) -> None:
    """Raise UserError for a base that is not there; of one on the hub only the name is seen."""
    if base := base_of(typed):
        resolve_base(base.pretrained_model_name_or_path, base.single_file_config)


def defaults_of(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What training takes for settings that are left out, where it is not the program's own."""
    base, method = base_of(typed), method_of(typed)
    return {
        **({"learning_rate": method.learning_rate} if method else {}),
        **(family_defaults(base, bool(typed.get("low_vram"))) if base else {}),
        **(low_vram_recipe() if typed.get("low_vram") else {}),
    }


def usual_values(typed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the fields in FOLLOWING for a run as the scripts start it.

    Args:
        before: for a base that cannot be read, of which only the method's rate is known.
    """
    import torch

    base, options = base_of(typed), options_of(TrainSettings)
    method = method_of(typed) or METHODS["krona"]
    defaults, usual = defaults_of(typed), usual_settings(base, method) if base else {}
    if not usual:
        rate = defaults.get("learning_rate")
        return {**before, **({"learning_rate": str(rate)} if rate else {})}
    if not torch.accelerator.is_available():
        usual["mixed_precision"] = "no"
    values = {**defaults, **usual, **(low_vram_recipe() if typed.get("low_vram") else {})}
    return {n: field_value(options[n], values.get(n, options[n].default)) for n in FOLLOWING}


def hidden_settings(typed: Mapping[str, Any]) -> set[str]:
    """Settings that a run with this base, method and length does not read."""
    base, method = base_of(typed), METHODS.get(str(typed.get("adapter_type")))
    hidden = inapplicable_settings(base) if base else set()
    if method:
        every = {name for each in METHODS.values() for name in each.settings}
        hidden |= every - set(method.settings)
    if typed.get("num_train_epochs"):
        hidden.add("max_train_steps")
    if not typed.get("train_text_encoder"):
        hidden |= set(TEXT_SETTINGS) - {"train_text_encoder"}
    return hidden
