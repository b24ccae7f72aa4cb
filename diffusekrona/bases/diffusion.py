"""The diffusion objective of SD 1.x, 2.x and SDXL: DDPM's forward process, and what is predicted.

DDPM (arXiv 2006.11239), velocity (arXiv 2202.00512), min-SNR (arXiv 2303.09556).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def schedule_refusal(config: Mapping[str, Any]) -> str | None:
    """What a noise schedule is that this objective cannot train on; None if it can.

    Args:
        config: the base's scheduler_config.json.
    """
    name, kind = str(config.get("_class_name", "")), config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        return f"an EDM noise schedule ({name})"
    if "FlowMatch" in name or config.get("use_flow_sigmas"):
        return f"a flow-matching schedule ({name})"
    if kind not in PREDICTION_TYPES:
        return f"a schedule with prediction_type {kind!r}"
    return None


@dataclass(frozen=True)
class DiffusionObjective:
    """Noise, target and weight under a DDPM noise schedule.

    Attributes:
        scheduler: diffusers' DDPMScheduler with the base's betas and prediction type.
    """

    scheduler: Any

    def draw_timestep(self, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        """One timestep () int64, uniform; `shape` of the latents plays no part."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (), generator=generator)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents (n, c, h, w) at timesteps (n,)."""
        noisy: torch.Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser predicts: noise, velocity or the sample (n, c, h, w).

        Raises:
            ValueError: an unknown prediction type.
        """
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: torch.Tensor = self.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        if kind == "sample":
            return latents
        raise ValueError(f"unknown prediction type {kind!r}")

    def weight(
        self, timesteps: torch.Tensor, snr_gamma: float | None, weighting_scheme: str | None = None
    ) -> torch.Tensor | None:
        """Min-SNR weight (n,) (arXiv 2303.09556, sections 3.4 and 4.1); None without gamma.

        min(SNR, gamma) over the SNR, over SNR + 1 for velocity, as it is for the sample.
        """
        if not snr_gamma:
            return None
        alphas = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
        snr = alphas / (1 - alphas).clamp(min=1e-12)
        clipped = snr.clamp(max=snr_gamma)
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return clipped
        if kind == "v_prediction":
            return clipped / (snr + 1)
        return clipped.clamp(min=1e-12) / snr.clamp(min=1e-12)  # 1 at zero terminal SNR, not 0 / 0
