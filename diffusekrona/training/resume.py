"""Resuming a run: what a resumed run must share with the one it continues."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters.file import config_to_json
from ..bases.loading import read_json_of
from ..bases.settings import BaseSettings
from ..bases.vae import vae_place
from ..common.errors import UserError
from ..common.pictures import content_key
from ..common.settings import flat, options_of
from ..data.class_images import class_pictures
from ..data.disk_cache import cache_of
from ..data.examples import Example
from ..data.settings import DataSettings, PriorSettings
from .checkpoint import find_checkpoint, leave_branch, load_checkpoint, read_settings
from .resolved_run import ResolvedRun
from .settings import OutputSettings, TrainSettings
from .training_state import TrainingState

log = logging.getLogger("diffusekrona")

# Compared beside the settings themselves: what some of them come to. Name in the record to flags.
OUTCOMES = {
    "adapter": "adapter",
    "resolution": "--resolution",
    "mixed_precision": "--mixed_precision",
    "batch over all processes": "--train_batch_size times processes",
    "pictures and captions (hash)": "the pictures and captions of --instance_data_dir (hash)",
    "class pictures (hash)": "the pictures of --class_data_dir (hash)",
    "base configs (hash)": "the configs of --pretrained_model_name_or_path (hash)",
    "base weights (hash)": "the weights of --pretrained_model_name_or_path (hash)",
}
_FORMER_NAMES = {"base model": "pretrained_model_name_or_path"}  # in the checkpoints of older runs


def fixed_settings(
    settings: TrainSettings,
    resolved: ResolvedRun,
    accelerator: Any,
    examples: Sequence[Example],
) -> dict[str, Any]:
    """What a resumed run must share with the one it continues, as JSON has it, by name.

    Every setting but those that say that they may change, and what some of these come to.
    """
    options = options_of(TrainSettings)
    fixed = {
        name: value
        for name, value in flat(settings).items()
        if not options[name].metadata["may_change_on_resume"]
    }
    outcomes = {
        "adapter": {name: config_to_json(config) for name, config in resolved.configs.items()},
        "resolution": resolved.resolution,
        "mixed_precision": accelerator.mixed_precision,
        "batch over all processes": (
            settings.optimisation.train_batch_size * accelerator.num_processes
        ),
        "pictures and captions (hash)": hash_of(example.content() for example in examples),
        "base configs (hash)": base_configs_hash(settings.base, resolved),
    }
    fixed = json.loads(json.dumps(fixed | outcomes, default=str))
    return with_content(fixed, settings.base, settings.data, settings.prior, resolved)


def with_content(
    fixed: Mapping[str, Any],
    base: BaseSettings,
    data: DataSettings,
    prior: PriorSettings,
    resolved: ResolvedRun,
) -> dict[str, Any]:
    """`fixed` with hashes of class pictures and base weights, as soon as they are there: before
    the first run some are still to be drawn or downloaded, and are represented by None."""
    return {
        **fixed,
        "class pictures (hash)": (fixed.get("class pictures (hash)") or class_pictures_hash(prior)),
        "base weights (hash)": (
            fixed.get("base weights (hash)") or base_weights_hash(base, data, resolved)
        ),
    }


def class_pictures_hash(prior: PriorSettings) -> str | None:
    """Of the pictures that prior preservation uses; None while they are not all there."""
    if not prior.with_prior_preservation or prior.class_data_dir is None:
        return None
    found = class_pictures(prior.class_data_dir, prior.num_class_images)
    return hash_of(map(content_key, found)) if len(found) == prior.num_class_images else None


def base_configs_hash(base: BaseSettings, resolved: ResolvedRun) -> str:
    """Of what the run reads beside the weights: the configs of denoiser, VAE and noise schedule."""
    name = "scheduler_config.json"
    configs = (
        resolved.denoiser_config,
        resolved.vae_config,
        read_json_of(resolved.base, "scheduler", name, base.revision),
    )
    # A name that begins with an underscore says who wrote the file.
    plain = ({k: v for k, v in each.items() if not k.startswith("_")} for each in configs)
    return hash_of(json.dumps(each, sort_keys=True) for each in plain)


def base_weights_hash(base: BaseSettings, data: DataSettings, resolved: ResolvedRun) -> str | None:
    """Of all weights that the run uses; None while they are not all on this machine."""
    cache = cache_of(data)
    vae, subfolder = vae_place(resolved.base, base.pretrained_vae_model_name_or_path)
    parts = [
        (resolved.base, name) for name in (resolved.family.denoiser, *resolved.family.text_encoders)
    ]
    digests = [
        cache.weights_digest(place, name, base.revision, base.variant)
        for place, name in [*parts, (vae, subfolder)]
    ]
    return None if None in digests else hash_of(map(str, digests))


def hash_of(lines: Iterable[str]) -> str:
    """16 hexadecimal digits that differ if a line does."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


def check_agreement(where: Path, saved: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse to resume with settings under which the run would not be the same one.

    What either side does not know, such as a setting that an older version did not have, is not
    compared.

    Args:
        where: the checkpoint or run, for the message.

    Raises:
        UserError: naming every setting that differs, with both values.
    """
    saved = {_FORMER_NAMES.get(name, name): value for name, value in saved.items()}
    pairs = {name: (saved[name], value) for name, value in fixed.items() if name in saved}
    flags = [name for name, (old, new) in pairs.items() if name not in OUTCOMES and old != new]
    differing = {f"--{name}": pairs[name] for name in flags}
    for name in OUTCOMES.keys() & pairs.keys():
        if name != "adapter" or not flags:  # of which a flag says it better
            differing |= _differences(OUTCOMES[name], *pairs[name])
    if differing:
        then = ", ".join(f"{name} = {_shown(old)}" for name, (old, _) in differing.items())
        now = ", ".join(_shown(new) for _, new in differing.values())
        raise UserError(
            f"{where} was trained with {then}; this run has {now}: use the same, or another "
            "--output_dir. To start again, give --overwrite_output_dir without "
            "--resume_from_checkpoint."
        )


def _differences(name: str, old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """By name, in what two outcomes differ; what one of them does not have is not compared."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() & new.keys()):
            found |= _differences(f"{name}: {key}", old[key], new[key])
        return found
    unknown = old is None or new is None
    return {} if unknown or old == new else {name: (old, new)}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def resume(
    output: OutputSettings,
    accelerator: Any,
    fixed: Mapping[str, Any],
    steps: int,
    state: TrainingState,
) -> int:
    """Load the checkpoint asked for; returns the number of steps already done.

    Args:
        fixed: what must agree, as `fixed_settings` gives it.
        steps: of the whole run.

    Raises:
        UserError: the checkpoint is damaged, past the run's end, or belongs to another run.
    """
    if not output.resume_from_checkpoint:
        return 0
    # Each process looks before the main one changes anything.
    checkpoint = find_checkpoint(output.output_dir, output.resume_from_checkpoint)
    if checkpoint is None:
        log.info("no checkpoint in %s: starting from the beginning", output.output_dir)
        return 0
    step, saved = read_settings(checkpoint)
    check_agreement(checkpoint, saved, fixed)
    if step > steps:
        raise UserError(
            f"{checkpoint} is past --max_train_steps {steps}: give at least {step} steps, or an "
            "earlier checkpoint."
        )
    load_checkpoint(accelerator, checkpoint, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        leave_branch(output.output_dir, checkpoint)
    accelerator.wait_for_everyone()
    log.info("resuming from %s", checkpoint)
    return step
