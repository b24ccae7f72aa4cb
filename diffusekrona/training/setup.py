"""What a training run builds before its loop: accelerate's state, the models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..adapters.layers import add_adapters
from ..bases.base import Objective
from ..bases.components import denoiser_name, is_text_encoder
from ..bases.precision import DTYPE_NAMES, dtype_of
from ..bases.quantisation import check_quantisation, quantise
from ..bases.settings import BaseSettings, PrecisionSettings
from ..common.devices import TIMEOUT, has_bf16
from ..common.errors import UserError, not_installed, shortened
from ..data.cache import Data
from .early_stop import EarlyStop, EarlyStopByLoss
from .gradient_checkpointing import checkpoints_on_host
from .init_from import start_from
from .optimizer import make_optimizer
from .regularisation import Regulariser
from .resolved_run import ResolvedRun
from .settings import LossSettings, OptimisationSettings, OutputSettings, TrainSettings
from .sharded import shards_base, take_over
from .training_state import TrainingState
from .validation_loss import ValidationLoss

log = logging.getLogger("diffusekrona")

ADAPTER_NAME = "default"


@dataclass(frozen=True)
class Parts:
    """What is trained and what trains it, before they are spread over the processes.

    Attributes:
        denoiser: the base's, with its adapter.
        models: component name to model: the denoiser, and the text encoders that are trained.
        adapted: those of them that carry the adapter.
        trained: the factors of all of them.
        optimizer: over the factors.
        regulariser: of the adapter.
        objective: noise, target and weight of the loss.
        shard: whether the base is to be shared out.
    """

    denoiser: nn.Module
    models: dict[str, nn.Module]
    adapted: dict[str, nn.Module]
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    regulariser: Regulariser
    objective: Objective
    shard: bool


def make_accelerator(
    optimisation: OptimisationSettings,
    precision: PrecisionSettings,
    output: OutputSettings,
    resolved: ResolvedRun,
) -> Any:
    """accelerate's state: device, precision, processes. Its trackers start with `start_trackers`.

    Raises:
        UserError: a precision that the device does not have, a tracker that is unknown or not
            installed, another number of gradient accumulation steps.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import AutocastKwargs, LoggerType, ProjectConfiguration

    trackers = _trackers(output)
    known = [kind.value for kind in LoggerType]
    if trackers not in (None, *known):
        given = shortened(repr(trackers))
        raise UserError(f"--report_to {given}: give one of {', '.join(known)}, or none.")
    if trackers not in (None, "all") and find_spec(trackers) is None:
        raise not_installed(f"--report_to {trackers}", trackers)  # accelerate would leave it out
    # SDXL's first text encoder ends one layer early, so its last layer's factors get no gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=resolved.trains_text_encoders)
    # The base is loaded in half precision. Where the adapter casts by itself, autocast would only
    # add casts, and on a GPU keep what it normalises in fp32.
    autocast = AutocastKwargs(enabled=resolved.method.autocast)
    logs = output.output_dir / output.logging_dir
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=optimisation.gradient_accumulation_steps,
            mixed_precision=precision.mixed_precision,
            log_with=trackers,
            cpu=precision.cpu,
            project_config=ProjectConfiguration(str(output.output_dir), str(logs)),
            kwargs_handlers=[ddp, autocast, InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
    except (ValueError, ImportError) as error:
        raise UserError(shortened(error, 300)) from error
    check_accumulation(accelerator, optimisation.gradient_accumulation_steps)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("--mixed_precision fp16 needs a GPU: on a CPU use no or bf16.")
    on_gpu = accelerator.device.type == "cuda"
    if accelerator.mixed_precision == "bf16" and on_gpu and not has_bf16():
        raise UserError("This GPU does not compute in bf16: give --mixed_precision fp16.")
    if accelerator.mixed_precision not in DTYPE_NAMES:
        raise UserError(f"--mixed_precision {accelerator.mixed_precision} is not supported.")
    return accelerator


def check_accumulation(accelerator: Any, asked: int) -> None:
    """Refuse what accelerate or DeepSpeed would count instead of `asked` micro-steps per step."""
    plugin = accelerator.state.deepspeed_plugin
    held = plugin.get_value("gradient_accumulation_steps") if plugin is not None else None
    for found in (accelerator.gradient_accumulation_steps, held):
        if found not in (None, "auto", asked):
            raise UserError(
                f"accelerate is set to {found} gradient accumulation steps (by accelerate launch, "
                f"its config, or DeepSpeed's), --gradient_accumulation_steps is {asked}: give one "
                "number in both places."
            )


def _trackers(output: OutputSettings) -> str | None:
    return None if output.report_to in ("none", "") else output.report_to


def start_trackers(accelerator: Any, output: OutputSettings, values: Mapping[str, Any]) -> None:
    """Begin to log to what `--report_to` names; it shows the settings' values beside the curves."""
    if not _trackers(output):
        return
    plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
    try:
        accelerator.init_trackers("dreambooth", config=plain)
    except (ValueError, ImportError) as error:
        raise UserError(shortened(error, 300)) from error


def build(settings: TrainSettings, resolved: ResolvedRun, data: Data, accelerator: Any) -> Parts:
    """Load the denoiser, put the adapter on it and on the encoders that are trained, and make their
    optimizer. `sharded.distribute` comes next.

    Raises:
        UserError: settings that do not fit the base, the method or the machine; a library that is
            missing.
    """
    optimisation, precision = settings.optimisation, settings.precision
    denoiser = load_denoiser(settings.base, precision, resolved, accelerator)
    models: dict[str, nn.Module] = {resolved.family.denoiser: denoiser, **data.text_encoders}
    adapted, trained = adapt(settings, resolved, models)
    regulariser = Regulariser(
        adapted, ADAPTER_NAME, optimisation.adapter_dropout, optimisation.max_relative_norm,
        optimisation.seed, resolved.method,
    )  # fmt: skip
    optimizer = make_optimizer(optimisation, models, accelerator.num_processes)
    objective = load_objective(settings.base, settings.loss, resolved)
    shard = shards_base(precision, accelerator)
    take_over(accelerator, optimisation.train_batch_size)
    return Parts(denoiser, models, adapted, trained, optimizer, regulariser, objective, shard)


def load_objective(base: BaseSettings, loss: LossSettings, resolved: ResolvedRun) -> Objective:
    """Noise, target and weight, by the base's own noise schedule and prediction type."""
    given = {"weighting_scheme": loss.weighting_scheme, **base.schedule()}
    options = {name: value for name, value in given.items() if value is not None}
    return resolved.family.load_objective(resolved.base, revision=base.revision, **options)


def load_denoiser(
    base: BaseSettings, precision: PrecisionSettings, resolved: ResolvedRun, accelerator: Any
) -> nn.Module:
    """The denoiser, frozen, in the precision that it is to compute in, on the device.

    Raises:
        UserError: `--quantize_base` without its library.
    """
    check_quantisation(precision.quantize_base)  # before the weights are read
    torch.backends.cuda.matmul.allow_tf32 = precision.allow_tf32
    denoiser = resolved.family.load_denoiser(
        resolved.base,
        torch_dtype=dtype_of(accelerator.mixed_precision),
        revision=base.revision,
        variant=base.variant,
    ).requires_grad_(False)
    blocks = resolved.family.block_lists
    return quantise(denoiser, precision.quantize_base, blocks).to(accelerator.device)


def adapt(
    settings: TrainSettings, resolved: ResolvedRun, models: Mapping[str, Any]
) -> tuple[dict[str, nn.Module], list[nn.Parameter]]:
    """Put the adapter on the models, started as the settings say.

    Args:
        models: component name to model; gradient checkpointing and attention are set as well.

    Returns:
        The models that carry the adapter, by name, and the factors of all of them.
    """
    torch.manual_seed(settings.optimisation.seed)  # for the factors' start
    trained = add_adapters(resolved.configs, models, ADAPTER_NAME)
    adapted = {name: models[name] for name in resolved.configs}
    if (source := settings.adapter.init_from) is not None:
        count = start_from(source, adapted, resolved.family.name, ADAPTER_NAME)
        log.info("starting from %s: %d layers", source, count)
    save_memory(settings.precision, models)
    return adapted, trained


def save_memory(precision: PrecisionSettings, models: Mapping[str, Any]) -> None:
    """Turn on gradient checkpointing and choose the attention's implementation.

    Args:
        models: component name to diffusers' or transformers' model.

    Raises:
        UserError: xformers is not installed, or there is no GPU for it.
    """
    if precision.gradient_checkpointing:
        for name, model in models.items():
            if is_text_encoder(name):
                model.gradient_checkpointing_enable()
            elif precision.cpu_offload_checkpointing:
                model.enable_gradient_checkpointing(checkpoints_on_host(model.device))
            else:
                model.enable_gradient_checkpointing()
    if precision.enable_xformers_memory_efficient_attention:
        try:
            models[denoiser_name(models)].enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise UserError(
                "--enable_xformers_memory_efficient_attention needs xformers and a GPU; torch's "
                f"own attention is used without the flag ({shortened(error, 300)})."
            ) from error


def make_early_stop(
    settings: TrainSettings,
    measured: ValidationLoss,
    state: TrainingState,
    trained: Sequence[nn.Parameter],
) -> EarlyStop:
    """What may end the run before its last step. Every process calls it.

    Raises:
        UserError: what it follows cannot be measured.
    """
    validation, output = settings.validation, settings.output
    if validation.early_stop is None:
        return EarlyStop()
    if validation.early_stop_by == "loss":
        return EarlyStopByLoss(validation.early_stop, measured, output.output_dir, state, trained)
    from .early_stop_by_scores import EarlyStopByScores

    return EarlyStopByScores(
        validation.early_stop,
        output.checkpointing_steps,
        output.output_dir,
        settings.base.pretrained_model_name_or_path,
        measured.accelerator,
        state,
    )
