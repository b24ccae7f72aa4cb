"""The optimizer over the factors, and their moving average."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils.import_utils import is_bitsandbytes_version
from torch import nn

from ..adapters.methods import is_second_factor
from ..bases.components import is_text_encoder
from ..common.errors import UserError, not_installed, shortened
from ..common.settings import did_you_mean
from .settings import LIBRARY_OPTIMIZERS, OptimisationSettings

log = logging.getLogger("diffusekrona")


def make_optimizer(
    optimisation: OptimisationSettings, models: Mapping[str, nn.Module], processes: int
) -> torch.optim.Optimizer:
    """The optimizer over the factors; text encoders have a learning rate of their own.

    Raises:
        UserError: an optional optimizer that is not installed, or too old; settings that it does
            not take.
    """
    factor = 1.0
    if optimisation.scale_lr:
        factor = (
            optimisation.gradient_accumulation_steps * optimisation.train_batch_size * processes
        )
    text_rate = optimisation.text_encoder_lr or optimisation.learning_rate / 2
    if optimisation.optimizer_args and optimisation.optimizer not in LIBRARY_OPTIMIZERS:
        raise UserError(
            f"--optimizer {optimisation.optimizer} takes no --optimizer_args; adamw's settings are "
            "the --adam_ flags."
        )
    if optimisation.optimizer == "prodigy":  # it finds the rate by itself, one for all
        if optimisation.lr_ratio != 1:
            raise UserError("--optimizer prodigy has one learning rate for all: remove --lr_ratio.")
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
    groups: list[dict[str, Any]] = []
    for name, model in models.items():
        groups += _groups(model, rates[name] * factor, optimisation.lr_ratio)
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
        if not is_bitsandbytes_version(">=", "0.49.2"):
            raise UserError(
                "--optimizer adamw8bit needs bitsandbytes 0.49.2 or newer, with which a run can be "
                "resumed: pip install -U bitsandbytes"
            )
        optimizers: Any = bitsandbytes.optim
        return optimizers.AdamW8bit(groups, **options)
    if optimisation.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise not_installed("--optimizer prodigy", "prodigyopt") from error
        return Prodigy(groups, **options)
    if optimisation.optimizer in LIBRARY_OPTIMIZERS:
        return _from_library(optimisation, groups, options)
    # One kernel for all factors instead of a thousand small ones, and fp16's check for overflow
    # stays on the GPU.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, **options, fused=fused)


def _groups(model: nn.Module, rate: float, ratio: float) -> list[dict[str, Any]]:
    """A model's factors and their learning rate; with a ratio, A and B apart (LoRA+, arXiv
    2402.12354): B, which starts at 0, has the learning rate times the ratio."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if ratio == 1:
        return [{"params": [p for _, p in trained], "lr": rate}]
    second = [id(p) for name, p in trained if is_second_factor(name)]
    a = [p for _, p in trained if id(p) not in second]
    b = [p for _, p in trained if id(p) in second]
    return [{"params": a, "lr": rate}, {"params": b, "lr": rate * ratio}]


def _from_library(
    optimisation: OptimisationSettings, groups: list[dict[str, Any]], options: dict[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of pytorch-optimizer, in training mode: its own defaults, but for the learning
    rate, the weight decay and `--optimizer_args`.

    Raises:
        UserError: the library is missing, or it refuses an argument.
    """
    try:
        from pytorch_optimizer import load_optimizer
    except ImportError as error:
        raise not_installed(f"--optimizer {optimisation.optimizer}", "pytorch-optimizer") from error
    kind: Any = load_optimizer(optimisation.optimizer)
    chosen = {name: options[name] for name in ("lr", "weight_decay")}
    own = _parse_arguments(optimisation.optimizer_args)
    known = inspect.signature(kind).parameters
    if unknown := [name for name in own if name not in known or name in ("params", "lr")]:
        raise UserError(
            f"--optimizer_args: {optimisation.optimizer} does not take "
            f"{unknown[0]}{did_you_mean(unknown[0], known)}."
        )
    if "use_muon" in inspect.getsource(kind):  # it wants to be told which factors are matrices
        groups = [{**group, "use_muon": True} for group in groups]
    try:
        optimizer = kind(groups, **{k: v for k, v in chosen.items() if k in known}, **own)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"--optimizer {optimisation.optimizer}: {shortened(error, 200)}") from error
    optimizer.defaults.setdefault("lr", options["lr"])  # which schedules read; Muon leaves it out
    set_mode(optimizer, training=True)
    return optimizer


def _parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        try:
            values[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            sign = ""
        if not sign:
            raise UserError(
                f"--optimizer_args {argument!r}: write NAME=VALUE, such as betas=(0.9,0.99)."
            )
    return values


def set_mode(optimizer: Any, training: bool) -> None:
    """Have a schedule-free optimizer hold the weights to train, or else those to use: an average.

    Other optimizers have no modes. accelerate's wrapper passes the call on.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    switch = getattr(inner, "train" if training else "eval", None)
    if switch is not None:
        switch()


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
