"""Random numbers and the loss of one denoising step.

DreamBooth's objective (arXiv 2208.12242, eq. 2): the instance loss plus `prior_loss_weight` times
the same loss on pictures of the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..bases.base import Objective
from ..bases.flow import TRAIN_TIMESTEPS
from .settings import LossSettings

MOST_DEBIASED = 100.0


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
    preserved: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of one batch, as the settings ask for it: a scalar.

    Args:
        prediction, latents, noise: (n, c, h, w); timesteps: (n,).
        num_prior: how many samples, the last ones, are of the class.
        mask: (n, 1, h, w) from 0 to 1: what is to be learned.
        preserved: (num_prior, c, h, w), the target of the class's samples in place of their own.
        sample_weight: (n,), factor of each sample's loss.
    """
    if mask is not None:
        mask = mask.clamp(min=settings.unmasked_weight)
    weight = objective.weight(timesteps, settings.snr_gamma, settings.weighting_scheme)
    if settings.debiased_weighting:
        debiased = debiased_weight(objective, timesteps)
        weight = debiased if weight is None else weight * debiased
    if sample_weight is not None:
        weight = sample_weight if weight is None else weight * sample_weight
    target = objective.target(latents, noise, timesteps)
    if preserved is not None:
        target = torch.cat([target[:-num_prior], preserved.to(target.dtype)])
    delta = None
    if settings.loss_type != "l2":
        delta = transition(settings.huber_schedule, settings.huber_c, objective, timesteps)
    return dreambooth_loss(
        prediction, target, weight, num_prior, settings.prior_loss_weight, mask,
        settings.loss_type, delta,
    )  # fmt: skip


def dreambooth_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    num_prior: int = 0,
    prior_loss_weight: float = 1.0,
    mask: torch.Tensor | None = None,
    loss_type: str = "l2",
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared (or robust) error, weighted per sample; the last `num_prior` samples are of the
    class.

    Args:
        prediction: (n, c, h, w), compared in fp32.
        target: (n, c, h, w).
        weight: (n,) or None for ones.
        mask: (n, 1, h, w), what each place weighs in its sample's mean; None for equal weights.
        loss_type: "l2", "huber" or "log_cosh"; the last two need `delta`, as `robust_error` does.

    Returns:
        A scalar.
    """
    if delta is None:
        loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
    else:
        loss = robust_error(prediction.float() - target.float(), delta, loss_type)
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


def robust_error(error: torch.Tensor, delta: torch.Tensor, loss_type: str) -> torch.Tensor:
    """An error function that is error² near 0 and 2 delta |error| far from it.

    Args:
        error: (n, c, h, w).
        delta: (n,), where the one becomes the other.
        loss_type: "huber", the pseudo-Huber loss as diffusers' scheduled training has it (arXiv
            2403.16728, equation 7), or "log_cosh".
    """
    delta = delta.view(-1, *(1,) * (error.dim() - 1))
    if loss_type == "huber":  # sqrt(error² + delta²) - delta, without its cancellation
        return 2 * delta * error**2 / ((error**2 + delta**2).sqrt() + delta)
    size = (error / delta).abs()
    near = torch.log1p(2 * torch.sinh(size.clamp(max=1) / 2) ** 2)  # log cosh, exact near 0
    far = size + F.softplus(-2 * size) - math.log(2)  # the same, finite far from it
    return 2 * delta**2 * torch.where(size < 1, near, far)


def transition(
    schedule: str, huber_c: float, objective: Objective, timesteps: torch.Tensor
) -> torch.Tensor:
    """Where the robust losses change from squared to linear, at timesteps (n,), as diffusers'
    scheduled Huber training has it: "constant", "exponential" (from 1 at timestep 0 to `huber_c`)
    or "snr" (from 1 without noise to `huber_c` in pure noise)."""
    if schedule == "exponential":
        return huber_c ** (timesteps.float() / TRAIN_TIMESTEPS)
    if schedule == "snr":
        signal, noise = path_coefficients(objective, timesteps)
        return (1 - huber_c) / (1 + noise / signal.clamp(min=1e-6)) ** 2 + huber_c
    return torch.full(timesteps.shape, huber_c, device=timesteps.device)


def debiased_weight(objective: Objective, timesteps: torch.Tensor) -> torch.Tensor:
    """Weight (n,) of debiased estimation (arXiv 2310.08442): 1 / sqrt(SNR) on the error of the
    noise, whatever the base predicts, at most `MOST_DEBIASED` and with the SNR at most 1000.

    Where y = a x0 + b noise is predicted, an error of y is one of the noise times
    signal / (b signal - a noise).
    """
    signal, noise = path_coefficients(objective, timesteps)
    one, zero = _ones(timesteps), _ones(timesteps) * 0
    a = objective.target(one, zero, timesteps).flatten()
    b = objective.target(zero, one, timesteps).flatten()
    noise_error = signal / (b * signal - a * noise)
    inverse_root = (noise / signal.clamp(min=1e-6)).clamp(min=1000**-0.5)
    return (noise_error**2 * inverse_root).clamp(max=MOST_DEBIASED)


def path_coefficients(
    objective: Objective, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of the picture and of the noise is in noisy latents at timesteps (n,): (n,) each."""
    one, zero = _ones(timesteps), _ones(timesteps) * 0
    signal = objective.add_noise(one, zero, timesteps).flatten()
    return signal, objective.add_noise(zero, one, timesteps).flatten()


def _ones(timesteps: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(timesteps), 1, 1, 1, device=timesteps.device)
