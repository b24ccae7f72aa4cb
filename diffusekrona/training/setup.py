"""What a training run builds before its loop."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ..adapters.methods import METHODS
from ..bases import backbones
from ..bases.small_cards import check_quantisation, checkpoints_on_host, quantise, tile_vae
from ..common.errors import UserError, writing
from ..common.json_files import read_json
from ..common.pictures import content_key
from ..data.cache import DTYPES, Data
from .checkpoint import (
    ADAPTER,
    RUN_RECORD,
    check_settings,
    checkpoints_in,
    find_checkpoint,
    leave_branch,
    load_checkpoint,
    read_settings,
    remove_checkpoint,
    remove_leftovers,
)
from .plan import Plan
from .training_state import TrainingState
from .validation import remove_validation

log = logging.getLogger("diffusekrona")

PATIENCE = 10.0  # seconds that a run which was killed may take to leave the system


def claim_output(args: argparse.Namespace) -> FileLock | None:
    """Keep other runs out of `output_dir` for as long as the returned lock lives, or this process.

    Of several processes only the first, by the launcher's account, takes the lock.

    Raises:
        UserError: another run is writing there, or nothing can be written there.
    """
    if int(os.environ.get("RANK", 0)):
        return None
    out: Path = args.output_dir
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out} is a file: give a folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(
                f"another run is writing to {out}: take another --output_dir, or wait for its end."
            ) from None
        except NotImplementedError:  # a file system without locks
            return None
    remove_leftovers(out)
    return lock


def refuse_to_overwrite(args: argparse.Namespace) -> None:
    """Keep an earlier run's result from being lost, unless its user says so.

    Raises:
        UserError: `output_dir` holds a result or an unfinished run, and no flag says what to do, or
            two flags contradict each other.
    """
    out: Path = args.output_dir
    checkpoints = checkpoints_in(out)
    if args.overwrite_output_dir:
        if args.resume_from_checkpoint not in (None, "latest"):
            raise UserError(
                "--overwrite_output_dir starts anew and --resume_from_checkpoint goes on from "
                f"{args.resume_from_checkpoint}: give one of the two."
            )
        args.resume_from_checkpoint = None
        (out / RUN_RECORD).unlink(missing_ok=True)  # or the new run's checkpoints would be refused
        for old in checkpoints:
            remove_checkpoint(old)
        remove_validation(out / "validation")
    elif not args.resume_from_checkpoint:
        for found in (*out.glob(ADAPTER), *checkpoints):
            raise UserError(
                f"{out} already holds {found.name}: choose another --output_dir, go on with "
                "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir."
            )


def already_finished(args: argparse.Namespace, steps: int, settings: Mapping[str, Any]) -> bool:
    """Whether a run that would be resumed has nothing left to do: its result is there.

    Raises:
        UserError: the result is there, but was trained otherwise.
    """
    record = args.output_dir / RUN_RECORD
    if args.resume_from_checkpoint != "latest" or not (args.output_dir / ADAPTER).is_file():
        return False
    if not record.is_file():
        return False
    try:
        run = read_json(record, FinishedRun)
    except UserError as error:
        log.warning("%s; looking for a checkpoint instead", error)
        return False
    check_settings(args.output_dir, run.fixed_settings, settings)
    if run.steps < steps:
        return False
    log.info("%s is trained already (%d steps)", args.output_dir / ADAPTER, run.steps)
    return True


@dataclass
class FinishedRun:
    """What a later run needs of `run.json`."""

    steps: int
    fixed_settings: dict[str, Any] = field(default_factory=dict)


def make_accelerator(args: argparse.Namespace) -> Any:
    """accelerate's state: device, precision, processes, trackers."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import AutocastKwargs, ProjectConfiguration

    trackers = None if args.report_to in ("none", "") else args.report_to
    if trackers not in (None, "all") and find_spec(trackers) is None:
        raise _not_installed(f"--report_to {trackers}", trackers)  # accelerate would leave it out
    # SDXL's first text encoder ends one layer early, so its last layer's factors get no gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=args.train_text_encoder)
    # The base is loaded in half precision. Where the adapter casts by itself, autocast would only
    # add casts, and on a GPU keep what it normalises in fp32.
    autocast = AutocastKwargs(enabled=METHODS[args.adapter_type].autocast)
    logs = args.output_dir / args.logging_dir
    with writing(args.output_dir):
        args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=trackers,
            cpu=args.cpu,
            project_config=ProjectConfiguration(str(args.output_dir), str(logs)),
            kwargs_handlers=[ddp, autocast],
        )
        if trackers:
            accelerator.init_trackers("dreambooth", config=_flat(args))
    except (ValueError, ImportError) as error:
        raise UserError(_one_line(error)) from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("--mixed_precision fp16 needs a GPU: on a CPU take no, or bf16.")
    if accelerator.mixed_precision not in DTYPES:
        raise UserError(f"--mixed_precision {accelerator.mixed_precision} is not supported.")
    return accelerator


def _flat(args: argparse.Namespace) -> dict[str, Any]:
    values = {k: v for k, v in vars(args).items() if k != "hub_token"}
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load_noise_schedule(args: argparse.Namespace, plan: Plan) -> Any:
    """The base's own noise schedule and prediction type, as DDPM's forward process."""
    return backbones.load_part(plan.base, "DDPMScheduler", "scheduler", revision=args.revision)


def load_denoiser(args: argparse.Namespace, plan: Plan, accelerator: Any) -> nn.Module:
    """The UNet, frozen, in the precision that it is to compute in, on the device.

    Raises:
        UserError: `--quantize_base` without its library.
    """
    check_quantisation(args.quantize_base)  # before the weights are read
    torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
    unet = backbones.load_part(
        plan.base,
        "UNet2DConditionModel",
        "unet",
        torch_dtype=DTYPES[accelerator.mixed_precision],
        revision=args.revision,
        variant=args.variant,
    )
    unet = quantise(unet.requires_grad_(False), args.quantize_base)
    return unet.to(accelerator.device)


def save_memory(args: argparse.Namespace, models: Mapping[str, nn.Module]) -> None:
    """Gradient checkpointing and the attention's implementation, as asked for."""
    if args.gradient_checkpointing:
        for name, model in models.items():
            if name == "unet" and args.cpu_offload_checkpointing:
                model.enable_gradient_checkpointing(checkpoints_on_host(model.device))
            elif name == "unet":
                model.enable_gradient_checkpointing()
            else:
                model.gradient_checkpointing_enable()
    if args.enable_xformers_memory_efficient_attention:
        try:
            models["unet"].enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise UserError(
                "--enable_xformers_memory_efficient_attention needs xformers and a GPU; torch's "
                f"own attention is used without the flag ({_one_line(error)})."
            ) from error


def make_optimizer(
    args: argparse.Namespace, models: Mapping[str, nn.Module], processes: int
) -> torch.optim.Optimizer:
    """The optimizer over the factors; text encoders have a learning rate of their own.

    Raises:
        UserError: an optional optimizer that is not installed.
    """
    factor = 1.0
    if args.scale_lr:
        factor = args.gradient_accumulation_steps * args.train_batch_size * processes
    text_rate = args.text_encoder_lr or args.learning_rate / 2
    if args.optimizer == "prodigy":  # it finds the rate by itself, one for all
        if args.text_encoder_lr not in (None, args.learning_rate):
            raise UserError(
                "--optimizer prodigy has one rate for all: leave out --text_encoder_lr."
            )
        text_rate = args.learning_rate
        if args.learning_rate < 0.1:
            log.warning(
                "prodigy multiplies the rate that it finds by --learning_rate %g, usually 1: next "
                "to nothing will be learned",
                args.learning_rate,
            )
    rates = {name: args.learning_rate if name == "unet" else text_rate for name in models}
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": rates[name] * factor}
        for name, model in models.items()
    ]
    options = {
        "lr": args.learning_rate * factor,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if args.optimizer == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError as error:
            raise _not_installed("--optimizer adamw8bit", "bitsandbytes") from error
        return bitsandbytes.optim.AdamW8bit(groups, **options)
    if args.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise _not_installed("--optimizer prodigy", "prodigyopt") from error
        return Prodigy(groups, **options)
    # One kernel for all factors instead of a thousand small ones, and fp16's check for overflow
    # stays on the GPU.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, **options, fused=fused)


def _not_installed(flag: str, package: str) -> UserError:
    return UserError(f"{flag} needs {package}, which is not installed: pip install {package}")


def make_ema(args: argparse.Namespace, trained: Sequence[nn.Parameter], accelerator: Any) -> Any:
    """The moving average of the factors, or None."""
    if not args.use_ema:
        return None
    from diffusers.training_utils import EMAModel

    ema = EMAModel(trained, decay=args.ema_decay)
    ema.to(accelerator.device)
    return ema


def settings_to_keep(
    args: argparse.Namespace,
    plan: Plan,
    accelerator: Any,
    pictures: Sequence[Path],
    captions: Sequence[str],
) -> dict[str, Any]:
    """What a resumed run must share with the one it continues: model, data, order, noise."""
    from ..adapters.file import config_to_json

    digest = hashlib.sha256()
    for picture, caption in zip(pictures, captions, strict=True):
        digest.update(f"{content_key(picture)} {caption}\n".encode())
    names = (
        "seed optimizer with_prior_preservation prior_loss_weight class_prompt num_class_images "
        "gradient_accumulation_steps use_ema random_flip center_crop aspect_ratio_buckets "
        "noise_offset snr_gamma learning_rate text_encoder_lr lr_scheduler lr_warmup_steps "
        "quantize_base"
    )
    return {
        "base model": args.pretrained_model_name_or_path,
        "adapter": {name: config_to_json(config) for name, config in plan.configs.items()},
        "adapter_type": args.adapter_type,
        "resolution": plan.resolution,
        "batch over all processes": args.train_batch_size * accelerator.num_processes,
        "pictures and captions (hash)": digest.hexdigest()[:16],
        **{name: getattr(args, name) for name in names.split()},
    }


def resume(
    args: argparse.Namespace,
    accelerator: Any,
    settings: Mapping[str, Any],
    steps: int,
    state: TrainingState,
) -> int:
    """Load the checkpoint asked for; returns the number of steps already done.

    Raises:
        UserError: it is damaged, or belongs to another run, or is past the last of `steps`.
    """
    if not args.resume_from_checkpoint:
        return 0
    # Each process looks before the main one changes anything.
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if checkpoint is None:
        log.info("no checkpoint in %s: starting from the beginning", args.output_dir)
        return 0
    step, saved = read_settings(checkpoint)
    check_settings(checkpoint, saved, settings)
    if step > steps:
        raise UserError(
            f"{checkpoint} is past --max_train_steps {steps}: give at least {step} steps, or an "
            "earlier checkpoint."
        )
    load_checkpoint(accelerator, checkpoint, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        leave_branch(args.output_dir, checkpoint)
    accelerator.wait_for_everyone()
    log.info("going on from %s", checkpoint)
    return step


def validate(
    args: argparse.Namespace,
    plan: Plan,
    accelerator: Any,
    unet: nn.Module,
    data: Data,
    step: int,
) -> None:
    """Draw the validation prompts, on the main process.

    A failure costs no training, and is told. Only before the first step is it raised: what cannot
    be drawn then, nobody would see arrive.
    """
    if args.validation_prompt and accelerator.is_main_process:
        try:
            images = _draw_validation(args, plan, unet, data, step)
            show_in_trackers(accelerator, images, step)
        except Exception as error:
            if step == 0:
                raise
            log.warning("no validation pictures at step %d: %s", step, _one_line(error))
    accelerator.wait_for_everyone()


def _draw_validation(
    args: argparse.Namespace, plan: Plan, unet: nn.Module, data: Data, step: int
) -> list[Any]:
    from ..data.folder import first_pictures
    from .validation import MOST_PHOTOS, draw_validation

    revision = {"revision": args.revision}
    states = data.states
    if data.text_encoders:
        from ..data.cache import cache_texts

        tokenizers = backbones.load_tokenizers(plan.base, plan.family, **revision)
        prompts = [*args.validation_prompt, ""]
        states = cache_texts(plan.family, tokenizers, data.text_encoders, prompts)
    vae = backbones.load_vae(
        plan.base,
        args.pretrained_vae_model_name_or_path,
        torch_dtype=DTYPES[args.vae_dtype],
        variant=args.variant,
        **revision,
    )
    if args.vae_tiling:
        tile_vae(vae)
    return draw_validation(
        plan.family,
        plan.base,
        unet,
        states,
        args.validation_prompt,
        args.output_dir / "validation",
        step,
        num_images=args.num_validation_images,
        steps=args.validation_inference_steps,
        guidance=args.validation_guidance_scale,
        size=(plan.resolution, plan.resolution),
        vae=vae,
        sampler=backbones.load_sampler(plan.base, **revision),
        photos=first_pictures(args.instance_data_dir, MOST_PHOTOS),
    )


def share(args: argparse.Namespace, accelerator: Any) -> None:
    """Write the run's model card and, if asked, upload it with the adapter and the grid."""
    if accelerator.is_main_process:
        from ..hub.card import write_model_card

        write_model_card(args.output_dir, repo_id=args.hub_model_id)
        if args.push_to_hub:
            from ..hub.upload import push_to_hub

            name = args.hub_model_id or args.output_dir.resolve().name
            log.info("uploaded to %s", push_to_hub(args.output_dir, name, token=args.hub_token))


def show_in_trackers(accelerator: Any, images: Sequence[Any], step: int) -> None:
    """Put validation pictures where the losses are."""
    import numpy as np

    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            stack = np.stack([np.asarray(image) for image in images])
            tracker.writer.add_images("validation", stack, step, dataformats="NHWC")
        elif tracker.name == "wandb":
            import wandb

            tracker.log({"validation": [wandb.Image(image) for image in images]}, step=step)
