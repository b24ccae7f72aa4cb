"""The objective, held to numbers: noise, targets, weights, the prior's share, the latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusekrona.bases.backbones import sample_latents
from diffusekrona.training.losses import denoising_target, draw, dreambooth_loss, snr_weight

KINDS = ("epsilon", "v_prediction", "sample")
STEPS = torch.tensor([0, 1, 20, 250, 500, 750, 998, 999])


def scheduler(kind: str = "epsilon", zero_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        rescale_betas_zero_snr=zero_snr,
    )


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_are_those_of_the_paper(kind: str, gamma: float) -> None:
    noise = scheduler(kind)
    snr = compute_snr(noise, STEPS)
    clipped = snr.clamp(max=gamma)
    want = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[kind]
    torch.testing.assert_close(snr_weight(noise, STEPS, gamma), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_at_zero_terminal_snr_are_their_limits(kind: str) -> None:
    weight = snr_weight(scheduler(kind, zero_snr=True), torch.tensor([999]), 5.0)
    limit = {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}[kind]
    assert weight.item() == pytest.approx(limit, abs=1e-6)


def test_velocity_at_zero_terminal_snr_is_minus_the_sample() -> None:
    noise_scheduler = scheduler("v_prediction", zero_snr=True)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=generators(0)[0])
    steps = torch.tensor([999])
    noised = noise_scheduler.add_noise(latents, noise, steps)
    torch.testing.assert_close(noised, noise, rtol=0, atol=1e-6)
    target = denoising_target(noise_scheduler, latents, noise, steps)
    torch.testing.assert_close(target, -latents, rtol=0, atol=1e-6)


def test_targets_undo_the_noising() -> None:
    latents, noise = torch.randn(2, len(STEPS), 4, 8, 8, generator=generators(1)[0])
    alpha = scheduler().alphas_cumprod[STEPS].view(-1, 1, 1, 1)
    noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    targets = {kind: denoising_target(scheduler(kind), latents, noise, STEPS) for kind in KINDS}
    assert targets["epsilon"] is noise and targets["sample"] is latents
    velocity = targets["v_prediction"]
    torch.testing.assert_close(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)
    back = alpha.sqrt() * noised - (1 - alpha).sqrt() * velocity  # x0 from v (2202.00512, app. D)
    torch.testing.assert_close(back, latents, rtol=1e-4, atol=1e-5)


def test_an_unknown_prediction_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="edm"):
        odd = scheduler()
        odd.register_to_config(prediction_type="edm")
        denoising_target(odd, torch.ones(1), torch.ones(1), torch.tensor([0]))


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
    together = draw(generators(3, 4), (4, 8, 8), 1000)
    alone = draw(generators(4), (4, 8, 8), 1000)
    for both, one in zip(together, alone, strict=True):
        assert torch.equal(both[1:], one)
    assert together[2].dtype == torch.int64


def test_offset_noise_shifts_whole_channels_and_nothing_else() -> None:
    plain = draw(generators(5, 6), (4, 8, 8), 1000)
    offset = draw(generators(5, 6), (4, 8, 8), 1000, noise_offset=0.1)
    assert torch.equal(plain[0], offset[0]) and torch.equal(plain[2], offset[2])
    shift = offset[1] - plain[1]
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    many = draw(generators(*range(500)), (4, 1, 1), 1000, noise_offset=0.1)[1]
    fewer = draw(generators(*range(500)), (4, 1, 1), 1000)[1]
    assert (many - fewer).std().item() == pytest.approx(0.1, rel=0.1)


def test_timesteps_reach_both_ends() -> None:
    steps = draw(generators(*range(2000)), (1, 1, 1), 10)[2]
    assert steps.unique().tolist() == list(range(10))
    assert steps.float().mean().item() == pytest.approx(4.5, abs=0.3)


def test_latents_are_the_distributions_sample_scaled_as_diffusers_scales_it() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25])
    moments = torch.cat([mean, std]).view(1, 4, 1, 1)
    noise = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    plain = sample_latents(moments, noise, {"scaling_factor": 0.5, "shift_factor": None})
    assert plain.flatten().tolist() == pytest.approx([(1 + 1) * 0.5, (-2 - 0.25) * 0.5])
