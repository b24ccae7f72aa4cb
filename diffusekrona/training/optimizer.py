"""The optimizer over the factors, and their moving average."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..bases.components import is_text_encoder
from ..common.errors import UserError, not_installed
from .settings import OptimisationSettings

log = logging.getLogger("diffusekrona")


def make_optimizer(
    optimisation: OptimisationSettings, models: Mapping[str, nn.Module], processes: int
) -> torch.optim.Optimizer:
    """The optimizer over the factors; text encoders have a learning rate of their own.

    Raises:
        UserError: an optional optimizer that is not installed.
    """
    factor = 1.0
    if optimisation.scale_lr:
        factor = (
            optimisation.gradient_accumulation_steps * optimisation.train_batch_size * processes
        )
    text_rate = optimisation.text_encoder_lr or optimisation.learning_rate / 2
    if optimisation.optimizer == "prodigy":  # it finds the rate by itself, one for all
        if optimisation.text_encoder_lr not in (None, optimisation.learning_rate):
            raise UserError(
                "--optimizer prodigy has one learning rate for all: remove --text_encoder_lr."
            )
        text_rate = optimisation.learning_rate
        if optimisation.learning_rate < 0.1:
            log.warning(
                "prodigy multiplies the rate that it finds by --learning_rate %g, usually 1: next "
                "to nothing will be learned",
                optimisation.learning_rate,
            )
    rate = optimisation.learning_rate
    rates = {name: text_rate if is_text_encoder(name) else rate for name in models}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": rates[name] * factor}
        for name, model in models.items()
    ]
    options: dict[str, Any] = {
        "lr": optimisation.learning_rate * factor,
        "betas": (optimisation.adam_beta1, optimisation.adam_beta2),
        "weight_decay": optimisation.adam_weight_decay,
        "eps": optimisation.adam_epsilon,
    }
    if optimisation.optimizer == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError as error:
            raise not_installed("--optimizer adamw8bit", "bitsandbytes") from error
        optimizers: Any = bitsandbytes.optim
        return optimizers.AdamW8bit(groups, **options)
    if optimisation.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise not_installed("--optimizer prodigy", "prodigyopt") from error
        return Prodigy(groups, **options)
    # One kernel for all factors instead of a thousand small ones, and fp16's check for overflow
    # stays on the GPU.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, **options, fused=fused)


def make_ema(
    optimisation: OptimisationSettings, trained: Sequence[nn.Parameter], accelerator: Any
) -> Any:
    """The moving average of the factors, or None."""
    if not optimisation.use_ema:
        return None
    from diffusers.training_utils import EMAModel

    ema = EMAModel(trained, decay=optimisation.ema_decay, foreach=True)
    ema.to(accelerator.device)
    return ema
