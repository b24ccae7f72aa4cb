"""Random numbers and the loss of one denoising step.

DreamBooth's objective (arXiv 2208.12242, eq. 2): the instance loss plus `prior_loss_weight` times
the same loss on pictures of the class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..bases.base import Objective
from .settings import LossSettings


def draw(
    generators: Sequence[torch.Generator],
    shape: tuple[int, ...],
    objective: Objective,
    noise_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The random numbers of a batch, one CPU generator a sample.

    Drawn on the CPU, so that a sample's noise depends neither on the device nor on which process
    or batch it falls into.

    Args:
        shape: (c, h, w) of one sample's latents.
        objective: of the base, which draws the timesteps.
        noise_offset: strength of a constant a channel added to the noise, 0 for none.

    Returns:
        Posterior noise (n, c, h, w), diffusion noise (n, c, h, w), timesteps (n,).
    """
    posterior, noise, timesteps = [], [], []
    for generator in generators:
        posterior.append(torch.randn(shape, generator=generator))
        one = torch.randn(shape, generator=generator)
        timesteps.append(objective.draw_timestep(generator, shape))
        if noise_offset:
            one = one + noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        noise.append(one)
    return torch.stack(posterior), torch.stack(noise), torch.stack(timesteps)


def batch_loss(
    settings: LossSettings,
    objective: Objective,
    prediction: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    num_prior: int = 0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of one batch, as the settings ask for it: a scalar.

    Args:
        prediction, latents, noise: (n, c, h, w); timesteps: (n,).
        num_prior: how many samples, the last ones, are of the class.
        mask: (n, 1, h, w) from 0 to 1: what is to be learned.
    """
    if mask is not None:
        mask = mask.clamp(min=settings.unmasked_weight)
    weight = objective.weight(timesteps, settings.snr_gamma)
    target = objective.target(latents, noise, timesteps)
    return dreambooth_loss(prediction, target, weight, num_prior, settings.prior_loss_weight, mask)


def dreambooth_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    num_prior: int = 0,
    prior_loss_weight: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error, weighted a sample, the last `num_prior` samples being of the class.

    Args:
        prediction: (n, c, h, w), compared in fp32.
        target: (n, c, h, w).
        weight: (n,) or None for ones.
        mask: (n, 1, h, w), what each place weighs in its sample's mean; None for equal weights.

    Returns:
        A scalar.
    """
    loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
    loss = loss.mean(dim=(1, 2, 3)) if mask is None else _masked_mean(loss, mask)
    if weight is not None:
        loss = loss * weight
    if not num_prior:
        return loss.mean()
    return loss[:-num_prior].mean() + prior_loss_weight * loss[-num_prior:].mean()


def _masked_mean(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Weighted mean of each sample (n,), so that a small subject counts no less than a large one;
    0 where nothing has a weight."""
    weighted = (loss * mask).sum(dim=(1, 2, 3))
    return weighted / (mask.sum(dim=(1, 2, 3)) * loss.shape[1]).clamp(min=1e-6)
