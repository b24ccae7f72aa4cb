"""Samplers: the base's own, with its noise schedule changed or as it is, and others by name."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from ..common.errors import UserError
from .loading import load_part, read_json_of, unreadable

log = logging.getLogger(__name__)

# Name to diffusers class and what is set beside the base's own scheduler config.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# What a config written for another scheduler class may leave out, and latent models need.
_SCHEDULER_NEEDS = {"clip_sample": False, "skip_prk_steps": True}


def schedule_options(
    prediction_type: str | None, rescale_betas_zero_snr: bool | None
) -> dict[str, Any]:
    """What overrides the noise schedule in a base's config; {} if nothing does."""
    given: dict[str, Any] = {"prediction_type": prediction_type}
    given["rescale_betas_zero_snr"] = rescale_betas_zero_snr or None  # False: as the base has it
    return {key: value for key, value in given.items() if value is not None}


def check_zero_snr(base: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for epsilon prediction on a schedule that ends in pure noise."""
    kind = config.get("prediction_type", "epsilon")
    if config.get("rescale_betas_zero_snr") and kind == "epsilon":
        raise UserError(
            f"Base model {base!r} predicts noise (epsilon), which says nothing of the picture at "
            "the last timestep of --rescale_betas_zero_snr: give --prediction_type v_prediction "
            "too."
        )


def to_zero_snr(kind: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The sampler, and what changes in its config, of a base whose last timestep is pure noise.

    The last timestep must be among the steps, so they are trailing (arXiv 2305.08891, section 3.3);
    Euler's method takes the place of samplers that cannot.
    """
    import diffusers

    if config.get("rescale_betas_zero_snr"):
        return kind, {}
    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    kind = kind if "rescale_betas_zero_snr" in taken else "EulerDiscreteScheduler"
    return kind, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def load_sampler(base: str, revision: str | None = None, **schedule: Any) -> Any:
    """The scheduler that the base's pipeline draws with.

    Args:
        schedule: of `schedule_options`.

    Raises:
        UserError: it cannot be read.
    """
    index = read_json_of(base, "", "model_index.json", revision)
    try:
        kind = str(index["scheduler"][1])
    except (LookupError, TypeError) as error:
        raise unreadable(base, "scheduler", error) from error
    if schedule.get("rescale_betas_zero_snr"):
        config = read_json_of(base, "scheduler", "scheduler_config.json", revision)
        check_zero_snr(base, config | schedule)
        kind, changes = to_zero_snr(kind, config)
        schedule |= changes
    return load_part(base, kind, "scheduler", revision=revision, **schedule)


def set_scheduler(pipeline: Any, name: str) -> None:
    """Put another sampler into `pipeline`, set up by the base's own scheduler config.

    Raises:
        UserError: the base is a flow-matching one, whose velocity none of these samplers reads.
    """
    import diffusers

    own = type(pipeline.scheduler).__name__
    if "FlowMatch" in own:
        raise UserError(
            f"--scheduler {name} is for diffusion models, and this base draws with flow matching "
            f"({own}) only: leave --scheduler out."
        )
    kind, extra = SCHEDULERS[name]
    cls = getattr(diffusers, kind)
    known = inspect.signature(cls.__init__).parameters
    config = {**_SCHEDULER_NEEDS, **pipeline.scheduler.config, **extra}
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        log.warning("scheduler %s lacks this base's zero terminal SNR: expect grey pictures", name)
    pipeline.scheduler = cls.from_config({k: v for k, v in config.items() if k in known})
