"""The loss, held to numbers: the prior's share, noise of single samples, timesteps."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusekrona.bases.diffusion import DiffusionObjective
from diffusekrona.training.losses import (
    batch_loss,
    draw,
    dreambooth_loss,
    robust_error,
    transition,
)
from diffusekrona.training.settings import LossSettings

OBJECTIVE = DiffusionObjective(DDPMScheduler())  # of 1000 timesteps


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_prior_has_its_own_mean_and_weight() -> None:
    prediction, target = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    target[2:] = 3.0  # the last two are of the class: their error is 9
    assert dreambooth_loss(prediction, target).item() == pytest.approx((1 + 1 + 9 + 9) / 4)
    loss = dreambooth_loss(prediction, target, num_prior=2, prior_loss_weight=0.5)
    assert loss.item() == pytest.approx(1 + 0.5 * 9)
    weights = torch.tensor([1.0, 3.0, 1.0, 0.0])
    loss = dreambooth_loss(prediction, target, weights, num_prior=2)
    assert loss.item() == pytest.approx((1 + 3) / 2 + 9 / 2)


def test_the_loss_is_computed_in_fp32() -> None:
    prediction = torch.full((1, 4, 16, 16), 300.0, dtype=torch.float16)  # 300² overflows fp16
    loss = dreambooth_loss(prediction, torch.zeros_like(prediction))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90_000)


def test_noise_belongs_to_the_sample_not_to_its_batch() -> None:
    together = draw(generators(3, 4), (4, 8, 8), OBJECTIVE)
    alone = draw(generators(4), (4, 8, 8), OBJECTIVE)
    for both, one in zip(together, alone, strict=True):
        assert torch.equal(both[1:], one)
    assert together[2].dtype == torch.int64


def test_offset_noise_shifts_whole_channels_and_nothing_else() -> None:
    plain = draw(generators(5, 6), (4, 8, 8), OBJECTIVE)
    offset = draw(generators(5, 6), (4, 8, 8), OBJECTIVE, noise_offset=0.1)
    assert torch.equal(plain[0], offset[0]) and torch.equal(plain[2], offset[2])
    shift = offset[1] - plain[1]
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    many = draw(generators(*range(500)), (4, 1, 1), OBJECTIVE, noise_offset=0.1)[1]
    fewer = draw(generators(*range(500)), (4, 1, 1), OBJECTIVE)[1]
    assert (many - fewer).std().item() == pytest.approx(0.1, rel=0.1)


def test_timesteps_reach_both_ends() -> None:
    ten = DiffusionObjective(DDPMScheduler(num_train_timesteps=10))
    steps = draw(generators(*range(2000)), (1, 1, 1), ten)[2]
    assert steps.unique().tolist() == list(range(10))
    assert steps.float().mean().item() == pytest.approx(4.5, abs=0.3)


@pytest.mark.parametrize("kind", ["huber", "log_cosh"])
def test_robust_errors_are_squared_near_zero_and_linear_far_away(kind: str) -> None:
    delta = torch.tensor([0.1, 2.0])
    near = robust_error(torch.full((2, 1, 1, 1), 1e-3), delta, kind).flatten()
    torch.testing.assert_close(near, torch.full((2,), 1e-6), rtol=1e-2, atol=0)
    far = robust_error(torch.full((2, 1, 1, 1), -1e4), delta, kind).flatten()
    torch.testing.assert_close(far, 2 * delta * 1e4, rtol=1e-3, atol=0)
    error = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    by_hand = {
        "huber": 2 * 0.5 * ((error**2 + 0.25).sqrt() - 0.5),
        "log_cosh": 2 * 0.25 * (error / 0.5).cosh().log(),
    }
    half = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(robust_error(error, half, kind), by_hand[kind])


def test_schedules_of_the_transition_are_those_of_diffusers() -> None:
    steps = torch.tensor([0, 250, 999])
    signal = OBJECTIVE.scheduler.alphas_cumprod[steps]
    sigmas = ((1 - signal) / signal) ** 0.5
    expected = {
        "constant": torch.full((3,), 0.1),
        "exponential": torch.exp(math.log(0.1) / 1000 * steps),
        "snr": (1 - 0.1) / (1 + sigmas) ** 2 + 0.1,
    }
    for name, values in expected.items():
        torch.testing.assert_close(transition(name, 0.1, OBJECTIVE, steps), values)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_debiased_loss_is_the_same_whatever_is_predicted(kind: str) -> None:
    """An error of the noise costs 1 / sqrt(SNR) times its square, however it is expressed."""
    objective = DiffusionObjective(DDPMScheduler(prediction_type=kind))
    steps = torch.tensor([50, 300, 800])
    latents, noise, wrong = torch.randn(3, 3, 4, 2, 2).unbind(0)
    noisy = objective.add_noise(latents, noise, steps)
    signal = objective.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    other = noise + 0.1 * wrong  # the same noisy latents, explained by another noise
    other_latents = (noisy - (1 - signal).sqrt() * other) / signal.sqrt()
    prediction = objective.target(other_latents, other, steps)
    settings = LossSettings(debiased_weighting=True)
    loss = batch_loss(settings, objective, prediction, latents, noise, steps)
    snr = (signal / (1 - signal)).flatten()
    by_hand = ((0.1 * wrong) ** 2).mean(dim=(1, 2, 3)) / snr.sqrt()
    torch.testing.assert_close(loss, by_hand.mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_the_error_of_each_sample(kind: str) -> None:
    """Hang et al. 2023: min(SNR, gamma) on the error of the sample, whatever is predicted."""
    objective = DiffusionObjective(DDPMScheduler(prediction_type=kind))
    steps = torch.tensor([20, 300, 800])
    latents, noise = torch.randn(2, 3, 4, 2, 2).unbind(0)
    error = torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1, 1)
    prediction = objective.target(latents, noise, steps) + error
    settings = LossSettings(snr_gamma=5.0)
    loss = batch_loss(settings, objective, prediction, latents, noise, steps)
    snr = compute_snr(objective.scheduler, steps)
    share = {"epsilon": 1 / snr, "v_prediction": 1 / (snr + 1), "sample": torch.ones(3)}[kind]
    by_hand = snr.clamp(max=5.0) * share * torch.tensor([1.0, 4.0, 9.0])
    torch.testing.assert_close(loss, by_hand.mean())


def test_the_settings_reach_the_loss() -> None:
    steps, zeros = torch.tensor([10, 10]), torch.zeros(2, 1, 2, 2)
    noise = torch.full((2, 1, 2, 2), 5.0)
    settings = LossSettings(loss_type="huber", huber_schedule="constant", huber_c=1.0)
    loss = batch_loss(settings, OBJECTIVE, zeros, zeros, noise, steps)
    assert loss.item() == pytest.approx(2 * (math.sqrt(26) - 1))
