"""The flow-matching objective of transformer bases: a straight path from picture to noise.

Rectified flow (arXiv 2209.03003) with logit-normal timesteps, shifted towards noise as large
pictures need it (arXiv 2403.03206, sections 3.1 and 5.3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .loading import load_part

TRAIN_TIMESTEPS = 1000  # of every family's schedule


def flow_refusal(config: Mapping[str, Any]) -> str | None:
    """What a noise schedule is that this objective cannot train on; None if it can.

    Args:
        config: the base's scheduler_config.json.
    """
    name = str(config.get("_class_name", "FlowMatchEulerDiscreteScheduler"))
    if "FlowMatch" not in name:
        return f"a diffusion schedule ({name})"
    if config.get("invert_sigmas"):
        return f"a reversed flow-matching schedule ({name})"
    return None


@dataclass(frozen=True)
class FlowObjective:
    """noisy = (1 - sigma) * latents + sigma * noise; the velocity noise - latents is predicted.

    Attributes:
        schedule: the base's scheduler_config.json.
        patch: latents per token, along one side: the shift depends on the number of tokens.
        weighting_scheme: density of the timesteps, as diffusers' training scripts name it:
            "logit_normal", or uniform with "none", "sigma_sqrt" and "cosmap".
    """

    schedule: Mapping[str, Any]
    patch: int
    weighting_scheme: str = "logit_normal"

    def draw_timestep(self, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        """One timestep () from 0 to 1000, fp32, for latents of `shape` (c, h, w)."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        (sigma,) = compute_density_for_timestep_sampling(
            self.weighting_scheme, 1, logit_mean=0.0, logit_std=1.0, generator=generator
        )
        shift = self.shift(shape)
        return TRAIN_TIMESTEPS * shift * sigma / (1 + (shift - 1) * sigma)

    def shift(self, shape: tuple[int, ...]) -> float:
        """How far timesteps are shifted towards noise, for latents of `shape` (c, h, w).

        A schedule with dynamic shifting depends on the number of tokens, as its sampler does; any
        other has one shift.
        """
        get = self.schedule.get
        if not get("use_dynamic_shifting", False):
            return float(get("shift", 1.0))
        tokens = (shape[-2] // self.patch) * (shape[-1] // self.patch)
        low, high = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        least, most = get("base_shift", 0.5), get("max_shift", 1.15)
        mu = least + (most - least) * (tokens - low) / (high - low)
        return math.exp(mu) if get("time_shift_type", "exponential") == "exponential" else mu

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents (n, c, h, w) at timesteps (n,)."""
        sigmas = (timesteps / TRAIN_TIMESTEPS).view(-1, 1, 1, 1).to(latents.dtype)
        return (1 - sigmas) * latents + sigmas * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The velocity, from picture to noise (n, c, h, w)."""
        return noise - latents

    def weight(
        self, timesteps: torch.Tensor, snr_gamma: float | None, weighting_scheme: str | None
    ) -> torch.Tensor | None:
        """Weight of each sample's loss (n,) with "sigma_sqrt" and "cosmap"; None for ones.

        Timesteps below 1, which diffusers' scripts do not draw, weigh as 1 does: sigma_sqrt's
        weight, 1 / sigma², has no bound.
        """
        if weighting_scheme not in ("sigma_sqrt", "cosmap"):
            return None
        from diffusers.training_utils import compute_loss_weighting_for_sd3

        sigmas = timesteps.clamp(min=1) / TRAIN_TIMESTEPS
        weight: torch.Tensor = compute_loss_weighting_for_sd3(weighting_scheme, sigmas)
        return weight


def load_flow_objective(base: str, patch: int, **options: Any) -> FlowObjective:
    """The objective on a base's own schedule, for a family's `load_objective`.

    Args:
        patch: as `FlowObjective` has it.
        options: weighting_scheme, None for the default, and what `load_part` takes.
    """
    scheme = options.pop("weighting_scheme", None) or "logit_normal"
    scheduler = load_part(base, "FlowMatchEulerDiscreteScheduler", "scheduler", **options)
    return FlowObjective(dict(scheduler.config), patch, scheme)
