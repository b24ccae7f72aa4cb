"""The optimizer over the factors, what it does in a step, and their moving average."""

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
from .optimizer_records import LIBRARY, OPTIMIZERS
from .settings import OptimisationSettings
from .sharded import average_gradients

log = logging.getLogger("diffusekrona")

_Groups = list[dict[str, Any]]
_Options = dict[str, Any]
_Optimizer = torch.optim.Optimizer


def make_optimizer(
    optimisation: OptimisationSettings, models: Mapping[str, nn.Module], processes: int
) -> torch.optim.Optimizer:
    """The optimizer over the factors; text encoders have a learning rate of their own.

    Raises:
        UserError: an optional optimizer that is not installed, or too old; settings that it does
            not take.
    """
    record, name = OPTIMIZERS[optimisation.optimizer], optimisation.optimizer
    factor = 1.0
    if optimisation.scale_lr:
        factor = (
            optimisation.gradient_accumulation_steps * optimisation.train_batch_size * processes
        )
    text_rate = optimisation.text_encoder_lr or optimisation.learning_rate / 2
    if optimisation.optimizer_args and not record.of_library:
        raise UserError(
            f"--optimizer {name} takes no --optimizer_args; adamw's settings are the --adam_ flags."
        )
    if record.finds_rate:
        one = f"--optimizer {name} has one learning rate for all: remove"
        if optimisation.lr_ratio != 1:
            raise UserError(f"{one} --lr_ratio.")
        if optimisation.text_encoder_lr not in (None, optimisation.learning_rate):
            raise UserError(f"{one} --text_encoder_lr.")
        text_rate = optimisation.learning_rate
        if optimisation.learning_rate < 0.1:
            log.warning(
                "%s multiplies the rate that it finds by --learning_rate %g, usually 1: next to "
                "nothing will be learned",
                name,
                optimisation.learning_rate,
            )
    rate = optimisation.learning_rate
    groups: _Groups = []
    for component, model in models.items():
        own = text_rate if is_text_encoder(component) else rate
        groups += _groups(model, own * factor, optimisation.lr_ratio)
    groups = [{**group, **record.group} for group in groups]
    options: _Options = {
        "lr": optimisation.learning_rate * factor,
        "betas": (optimisation.adam_beta1, optimisation.adam_beta2),
        "weight_decay": optimisation.adam_weight_decay,
        "eps": optimisation.adam_epsilon,
    }
    return _MAKERS[record.package](optimisation, groups, options)


def _groups(model: nn.Module, rate: float, ratio: float) -> _Groups:
    """A model's factors and their learning rate; with a ratio, A and B apart (LoRA+, arXiv
    2402.12354): B, which starts at 0, has the learning rate times the ratio."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if ratio == 1:
        return [{"params": [p for _, p in trained], "lr": rate}]
    second = [id(p) for name, p in trained if is_second_factor(name)]
    a = [p for _, p in trained if id(p) not in second]
    b = [p for _, p in trained if id(p) in second]
    return [{"params": a, "lr": rate}, {"params": b, "lr": rate * ratio}]


def _adamw(_: OptimisationSettings, groups: _Groups, options: _Options) -> _Optimizer:
    # One kernel for all factors instead of a thousand small ones, and fp16's check for overflow
    # stays on the GPU.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, **options, fused=fused)


def _adamw8bit(_: OptimisationSettings, groups: _Groups, options: _Options) -> _Optimizer:
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


def _prodigy(_: OptimisationSettings, groups: _Groups, options: _Options) -> _Optimizer:
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise not_installed("--optimizer prodigy", "prodigyopt") from error
    return Prodigy(groups, **options)


def _from_library(
    optimisation: OptimisationSettings, groups: _Groups, options: _Options
) -> _Optimizer:
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
    own = {**OPTIMIZERS[optimisation.optimizer].arguments, **own}
    try:
        optimizer = kind(groups, **{k: v for k, v in chosen.items() if k in known}, **own)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"--optimizer {optimisation.optimizer}: {shortened(error, 200)}") from error
    optimizer.defaults.setdefault("lr", options["lr"])  # which schedules read; Muon leaves it out
    set_mode(optimizer, training=True)
    return optimizer


# By package.
_MAKERS = {
    None: _adamw,
    "bitsandbytes": _adamw8bit,
    "prodigyopt": _prodigy,
    LIBRARY: _from_library,
}


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


def backward_and_step(
    loss: torch.Tensor,
    accelerator: Any,
    optimizer: Any,
    trained: Sequence[nn.Parameter],
    max_norm: float,
    shard: bool,
) -> bool:
    """Add a micro-step's gradients; the last one of a step moves the factors by them.

    Every process calls it, within `accelerator.accumulate`.

    Args:
        loss: scalar.
        optimizer: as accelerate prepared it.
        trained: the factors.
        max_norm: the norm to which the gradients of all factors together are clipped.
        shard: average the gradients over the processes, which accelerate does for a whole base.

    Returns:
        Whether the factors may have moved.
    """
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        if shard:
            average_gradients(trained)
        accelerator.clip_grad_norm_(trained, max_norm)
    moved = stepped(accelerator, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return moved


def stepped(accelerator: Any, optimizer: Any) -> bool:
    """Step the optimizer; whether the factors may have moved: with fp16, not where the gradients
    overflowed.

    The fused AdamW skips such a step inside its kernel, which accelerate does not see. The loss
    scale, which is lowered after each of them, shows it.
    """
    scaler = accelerator.scaler
    before = scaler.get_scale() if scaler is not None else None
    optimizer.step()
    if scaler is None or not accelerator.sync_gradients:
        return not accelerator.optimizer_step_was_skipped
    return scaler.get_scale() >= before


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
