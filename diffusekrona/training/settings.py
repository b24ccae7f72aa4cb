"""The training program's settings. Those that diffusers' DreamBooth scripts have use their names.

A new setting is one field here, in the group that it belongs to: its flag, its help, its place in
`run.yaml`, its limits and whether a resumed run must agree in it follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..adapters.methods import METHODS
from ..adapters.settings import AdapterSettings
from ..bases.settings import BaseSettings, PrecisionSettings
from ..common.command_line import parse
from ..common.devices import has_bf16
from ..common.errors import UserError
from ..common.settings import COUNTS, SEEDS, flat, options_of, setting, with_values
from ..data.captions import with_trigger
from ..data.settings import DataSettings, PriorSettings
from .optimizer_records import OPTIMIZERS

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
]
ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")  # of adamw, adamw8bit and prodigy
# Settings of schedules, each with the schedules that read it.
SCHEDULES_OF: Mapping[str, tuple[Schedule, ...]] = {
    "lr_warmup_steps": (
        "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
    ),
    "lr_num_cycles": ("cosine_with_restarts",),
    "lr_power": ("polynomial",),
    "lr_step_rules": ("piecewise_constant",),
}  # fmt: skip


@dataclass(frozen=True)
class LossSettings:
    """The loss."""

    snr_gamma: float | None = setting(
        None, above=0, help="Use Min-SNR weighting with this gamma; 5.0 is its paper's choice."
    )
    weighting_scheme: Literal["logit_normal", "none", "sigma_sqrt", "cosmap"] | None = setting(
        None,
        help="Density of the timesteps and weight of the loss of flow-matching bases: logit_normal "
        "is the default, none is uniform, sigma_sqrt and cosmap weight the loss.",
    )
    debiased_weighting: bool = setting(
        False, help="Weight the loss with 1 / sqrt(SNR), which counts noisy timesteps more."
    )
    loss_type: Literal["l2", "huber", "log_cosh"] = setting(
        "l2", help="Error function; huber and log_cosh count large errors less."
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = setting(
        "snr", help="How --huber_c depends on the timestep, for huber and log_cosh."
    )
    huber_c: float = setting(
        0.1, above=0, help="Error from which huber and log_cosh grow linearly."
    )
    noise_offset: float = setting(
        0.0, minimum=0, help="Add offset noise of this strength, for dark or light pictures."
    )
    prior_loss_weight: float = setting(1.0, minimum=0, help="Weight of the loss of the class.")
    unmasked_weight: float = setting(
        0.1,
        minimum=0,
        maximum=1,
        help="Weight of what the mask leaves out, with --masked_loss.",
    )


@dataclass(frozen=True)
class OptimisationSettings:
    """Optimisation."""

    train_batch_size: int = setting(
        1,
        **COUNTS,
        may_change_on_resume=True,  # the batch over all processes may not
        help="Pictures per step on each device.",
    )
    gradient_accumulation_steps: int = setting(1, **COUNTS, help="Gradient accumulation steps.")
    max_train_steps: int | None = setting(
        None,
        minimum=1,
        may_change_on_resume=True,
        help="Number of steps; by default 1000.",
    )
    num_train_epochs: int | None = setting(
        None,
        minimum=1,
        may_change_on_resume=True,
        help="Number of passes over the pictures with their repeats, in place of "
        "--max_train_steps.",
    )
    learning_rate: float = setting(
        METHODS["krona"].learning_rate,  # of the other methods see `parse_settings`
        above=0,
        help="Learning rate; by default the method's: "
        + ", ".join(f"{method.learning_rate:g} for {name}" for name, method in METHODS.items())
        + ".",
    )
    lr_find: bool = setting(
        False,
        may_change_on_resume=True,
        in_file=False,
        help="Train nothing: sweep over learning rates for 100 steps, print the curve and the rate "
        "to begin with, write lr_find.png, and exit.",
    )
    text_encoder_lr: float | None = setting(
        None, above=0, help="Learning rate of the text encoders; by default half of the other."
    )
    lr_ratio: float = setting(
        1.0,
        above=0,
        help="Learning rate of the factor that starts at 0 (B), divided by that of the other (A).",
    )
    scale_lr: bool = setting(
        False, help="Multiply the learning rate by batch, accumulation and processes."
    )
    lr_scheduler: Schedule = setting("constant", help="Learning-rate schedule.")
    lr_warmup_steps: int = setting(
        0, minimum=0, help="Steps of warm-up, of all schedules but constant and piecewise_constant."
    )
    lr_num_cycles: int = setting(
        1, **COUNTS, help="Number of hard restarts of cosine_with_restarts."
    )
    lr_power: float = setting(1.0, minimum=0, help="Power of the polynomial schedule.")
    lr_step_rules: str | None = setting(
        None, metavar="RULES", help='Rules of piecewise_constant, such as "1:500,0.1".'
    )
    optimizer: str = setting(
        "adamw",
        choices=tuple(OPTIMIZERS),
        ignore_case=True,
        help="Optimizer; adamw8bit needs bitsandbytes, prodigy needs prodigyopt and a learning "
        "rate of 1, all but adamw and these need pytorch-optimizer.",
    )
    optimizer_args: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="NAME=VALUE",
        help="Pass this argument to an optimizer of pytorch-optimizer, such as betas=(0.9,0.99); "
        "repeat the flag for several.",
    )
    use_8bit_adam: bool = setting(
        False,
        may_change_on_resume=True,  # --optimizer is compared
        help="The same as --optimizer adamw8bit.",
    )
    adam_beta1: float = setting(0.9, minimum=0, below=1, help="Decay of Adam's first moment.")
    adam_beta2: float = setting(0.999, minimum=0, below=1, help="Decay of Adam's second moment.")
    adam_weight_decay: float = setting(1e-2, minimum=0, help="Weight decay.")
    adam_epsilon: float = setting(1e-8, minimum=0, help="Term that keeps Adam's division finite.")
    max_grad_norm: float = setting(1.0, above=0, help="Clip gradients to this norm.")
    adapter_dropout: float = setting(
        0.0,
        minimum=0,
        below=1,
        help="Leave each layer's adapter out of a step with this probability.",
    )
    max_relative_norm: float | None = setting(
        None, above=0, help="Limit ||delta W|| / ||W|| of each layer to this after every step."
    )
    use_ema: bool = setting(False, help="Save the moving average of the factors.")
    ema_decay: float = setting(0.999, minimum=0, maximum=1, help="Decay of that average.")
    seed: int = setting(0, **SEEDS, help="Seed of all randomness: same seed, same run.")


@dataclass(frozen=True)
class ValidationSettings:
    """Validation pictures."""

    validation_prompt: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="PROMPT",
        may_change_on_resume=True,
        help="Draw this prompt during training; repeat the flag for several.",
    )
    validation_steps: int = setting(
        250,
        minimum=1,
        may_change_on_resume=True,
        help="Draw every this many steps, and at the start and the end.",
    )
    validation_loss_steps: int | None = setting(
        None,
        minimum=0,
        metavar="N",
        may_change_on_resume=True,
        help="Measure the loss of held-out pictures, or else of training pictures, at fixed "
        "timesteps with fixed noise every this many steps; 0: never; by default every 100 steps "
        "where pictures are held out.",
    )
    early_stop: int | None = setting(
        None,
        minimum=1,
        metavar="N",
        may_change_on_resume=True,
        help="Stop once the validation loss has not fallen for N measurements; the result is the "
        "adapter of the lowest. Needs --holdout, --holdout_data_dir or --validation_loss_steps.",
    )
    early_stop_by: Literal["loss", "scores"] = setting(
        "loss",
        may_change_on_resume=True,
        help="scores: --early_stop counts checkpoints that are not better by diffusekrona choose, "
        "which draws and scores pictures after each, with a second copy of the base in memory.",
    )
    num_validation_images: int = setting(
        2, **COUNTS, may_change_on_resume=True, help="Pictures per prompt, of seeds 0, 1 …"
    )
    validation_inference_steps: int = setting(
        25,
        **COUNTS,
        may_change_on_resume=True,
        help="Denoising steps of these pictures; fewer by default on a distilled base.",
    )
    validation_guidance_scale: float = setting(
        7.0,
        may_change_on_resume=True,
        help="Classifier-free guidance of these pictures; by default 4 on FLUX.2-klein "
        "and Z-Image, 3 on pocket, none on distilled models.",
    )


@dataclass(frozen=True)
class OutputSettings:
    """Output."""

    output_dir: Path = setting(
        metavar="FOLDER",
        may_change_on_resume=True,
        help="Write adapter.safetensors and all other output here.",
    )
    overwrite_output_dir: bool = setting(
        False,
        may_change_on_resume=True,
        in_file=False,
        help="Delete an existing run and start again.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] = setting(
        "fp32", may_change_on_resume=True, help="Precision of the adapter file; fp16 halves it."
    )
    checkpointing_steps: int = setting(
        500,
        minimum=1,
        may_change_on_resume=True,
        help="Save the training state every this many steps.",
    )
    checkpoints_total_limit: int | None = setting(
        None, minimum=1, may_change_on_resume=True, help="Keep only this many of the newest."
    )
    resume_from_checkpoint: str | None = setting(
        None,
        metavar="latest|PATH",
        may_change_on_resume=True,
        in_file=False,
        help="Resume from a saved training state.",
    )
    report_to: str = setting(
        "tensorboard", may_change_on_resume=True, help="tensorboard, wandb, all or none."
    )
    logging_dir: str = setting(
        "logs", may_change_on_resume=True, help="Folder of the trackers' logs in --output_dir."
    )
    push_to_hub: bool = setting(
        False, may_change_on_resume=True, help="Upload adapter, card and grid at the end."
    )
    hub_model_id: str | None = setting(
        None,
        metavar="NAME",
        may_change_on_resume=True,
        help="Repository on the hub; by default the name of --output_dir.",
    )
    hub_token: str | None = setting(
        None,
        may_change_on_resume=True,
        in_file=False,
        help="Token for the hub; by default that of your login.",
    )
    dry_run: bool = setting(
        False,
        may_change_on_resume=True,
        in_file=False,
        help="Print the plan and the memory it needs, and exit.",
    )


@dataclass(frozen=True)
class TrainSettings:
    """All settings of a training run, by group."""

    base: BaseSettings
    data: DataSettings
    adapter: AdapterSettings
    prior: PriorSettings
    loss: LossSettings
    optimisation: OptimisationSettings
    precision: PrecisionSettings
    validation: ValidationSettings
    output: OutputSettings


def parse_settings(
    argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None
) -> TrainSettings:
    """The settings of a run, checked as far as nothing need be loaded for it.

    Args:
        defaults: in place of the program's own, by name.

    Raises:
        UserError: values that cannot work, one line each.
        SystemExit: after `--help`.
    """
    given = dict(defaults or {})
    settings = _parse(argv, given)
    others = {"learning_rate": METHODS[settings.adapter.adapter_type].learning_rate} | given
    if settings.precision.low_vram:
        others |= low_vram_recipe()
    known = {name: option.default for name, option in options_of(TrainSettings).items()} | given
    if any(known[name] != value for name, value in others.items()):
        # Once more, with other defaults: explicit flags take precedence.
        settings = _parse(argv, others)
    if settings.precision.low_vram and not settings.precision.gradient_checkpointing:
        # Switched off by a flag: the recipe's offload would switch it on.
        settings = _parse(argv, others | {"cpu_offload_checkpointing": False})
    return resolve(settings)


def _parse(argv: Sequence[str] | None, defaults: dict[str, Any] | None = None) -> TrainSettings:
    return parse(
        TrainSettings,
        argv,
        prog="diffusekrona.train_dreambooth",
        description="DreamBooth fine-tuning of Stable Diffusion and SDXL with a Kronecker adapter.",
        defaults=defaults,
    )


def resolve(settings: TrainSettings) -> TrainSettings:
    """The settings with what one of them implies for another; refuses those that contradict.

    Raises:
        UserError: naming the flags.
    """
    optimisation, precision, prior = settings.optimisation, settings.precision, settings.prior
    if prior.with_prior_preservation and not (prior.class_data_dir and prior.class_prompt):
        raise UserError("--with_prior_preservation needs --class_data_dir and --class_prompt.")
    if prior.preserve_class and not prior.class_prompt:
        raise UserError("--preserve_class needs --class_prompt.")
    if prior.preserve_class and prior.with_prior_preservation:
        raise UserError(
            "--preserve_class and --with_prior_preservation both preserve the class: give one."
        )
    if optimisation.max_train_steps is not None and optimisation.num_train_epochs is not None:
        raise UserError("--max_train_steps and --num_train_epochs both say how long: give one.")
    if optimisation.lr_scheduler == "piecewise_constant" and not optimisation.lr_step_rules:
        raise UserError('--lr_scheduler piecewise_constant needs --lr_step_rules, as "1:500,0.1".')
    if optimisation.use_8bit_adam and optimisation.optimizer not in ("adamw", "adamw8bit"):
        raise UserError(
            "--use_8bit_adam is the same as --optimizer adamw8bit: leave it or --optimizer "
            f"{optimisation.optimizer} out."
        )
    _check_all_apply(optimisation)
    if optimisation.max_relative_norm and OPTIMIZERS[optimisation.optimizer].averages:
        raise UserError(
            f"--max_relative_norm does not limit the average that {optimisation.optimizer} makes: "
            "leave it out, or give another --optimizer."
        )
    if settings.data.holdout and settings.data.holdout_data_dir:
        raise UserError("Give either --holdout or --holdout_data_dir: each says what is held out.")
    validation = settings.validation
    held_out = settings.data.holdout or settings.data.holdout_data_dir
    every = validation.validation_loss_steps
    by_scores = validation.early_stop_by == "scores"
    if validation.early_stop and by_scores and settings.output.checkpoints_total_limit:
        raise UserError(
            "--early_stop_by scores compares all checkpoints: leave --checkpoints_total_limit out."
        )
    if validation.early_stop and by_scores and averages(optimisation):
        raise UserError(
            "--early_stop_by scores makes a checkpoint's factors the result, not an average: leave "
            "--use_ema and schedule-free optimizers out, or give --early_stop_by loss."
        )
    if validation.early_stop and not by_scores and not (held_out if every is None else every):
        raise UserError(
            "--early_stop follows the validation loss: hold pictures out with --holdout 1 or "
            "--holdout_data_dir, or measure on training pictures with --validation_loss_steps 100."
        )
    output = settings.output
    if output.overwrite_output_dir and output.resume_from_checkpoint:
        raise UserError(
            "--overwrite_output_dir would delete what --resume_from_checkpoint "
            f"{output.resume_from_checkpoint} resumes from: give one of the two."
        )
    if settings.loss.debiased_weighting and settings.loss.snr_gamma is not None:
        raise UserError("--debiased_weighting and --snr_gamma both weight timesteps: give one.")
    optimizer = "adamw8bit" if optimisation.use_8bit_adam else optimisation.optimizer
    checkpointing = precision.gradient_checkpointing or precision.cpu_offload_checkpointing
    word, drawn = settings.data.trigger, settings.validation.validation_prompt
    return with_values(
        settings,
        optimizer=optimizer,
        use_8bit_adam=False,  # so that run.yaml names the optimizer once
        gradient_checkpointing=checkpointing,
        validation_prompt=tuple(with_trigger(each, word) for each in drawn),
    )


def _check_all_apply(optimisation: OptimisationSettings) -> None:
    """Refuse settings of schedules and optimizers that the chosen one would not read.

    Raises:
        UserError: naming the flag.
    """
    usual, schedule = OptimisationSettings(), optimisation.lr_scheduler
    for name, schedules in SCHEDULES_OF.items():
        if schedule not in schedules and getattr(optimisation, name) != getattr(usual, name):
            raise UserError(
                f"--{name} does not apply to --lr_scheduler {schedule}: leave it out, or give "
                f"--lr_scheduler {schedules[0]}."
            )
    for name in ADAM if OPTIMIZERS[optimisation.optimizer].of_library else ():
        if getattr(optimisation, name) != getattr(usual, name):
            raise UserError(
                f"--{name} does not apply to --optimizer {optimisation.optimizer}: leave it out; "
                "its own arguments are given with --optimizer_args."
            )


def unused_class_flags(prior: PriorSettings) -> list[str]:
    """Flags about pictures of the class that are given and have no effect."""
    if prior.with_prior_preservation:
        return []
    prompt = prior.class_prompt and not prior.preserve_class
    given = {"--class_data_dir": prior.class_data_dir, "--class_prompt": prompt}
    return [flag for flag, value in given.items() if value]


def averages(optimisation: OptimisationSettings) -> bool:
    """Whether the result is an average of the factors that were trained."""
    return optimisation.use_ema or OPTIMIZERS[optimisation.optimizer].averages


def low_vram_recipe() -> dict[str, Any]:
    """The settings that `--low_vram` selects on this machine, by name. The optimizer is
    not one of them: only the factors have a state, a few megabytes."""
    quantised = {"quantize_base": "nf4"} if find_spec("bitsandbytes") else {}
    return {
        "gradient_checkpointing": True,
        "cpu_offload_checkpointing": True,
        "mixed_precision": "bf16" if has_bf16() else "fp16",
        "vae_tiling": True,
        **quantised,
    }


def shared_settings(settings: TrainSettings) -> dict[str, Any]:
    """Every setting by name that others may see: without the hub's token."""
    options = options_of(TrainSettings)
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in flat(settings).items()
        if options[name].metadata["in_file"]
    }


def low_vram_in_words(precision: PrecisionSettings, optimisation: OptimisationSettings) -> str:
    """What `--low_vram` came to, the user's own flags included."""
    names = dict.fromkeys([*low_vram_recipe(), "quantize_base"])
    values = {name: getattr(precision, name) for name in names}
    values["train_batch_size"] = optimisation.train_batch_size
    values["optimizer"] = optimisation.optimizer
    words = ", ".join(f"{name} {value}" for name, value in values.items())
    missing = "" if find_spec("bitsandbytes") else "; pip install bitsandbytes for a 4-bit base"
    return f"{words}{missing}"
