"""The samplers that a picture can be drawn with, by name."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from ..common.errors import UserError

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
