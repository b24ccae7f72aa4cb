"""The diffusion objective, held to numbers: targets, weights, zero terminal SNR."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusekrona.bases.diffusion import DiffusionObjective, schedule_refusal

KINDS = ("epsilon", "v_prediction", "sample")
STEPS = torch.tensor([0, 1, 20, 250, 500, 750, 998, 999])


def objective(kind: str = "epsilon", zero_snr: bool = False) -> DiffusionObjective:
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        rescale_betas_zero_snr=zero_snr,
    )
    return DiffusionObjective(scheduler)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_are_those_of_the_paper(kind: str, gamma: float) -> None:
    trained = objective(kind)
    snr = compute_snr(trained.scheduler, STEPS)
    clipped = snr.clamp(max=gamma)
    want = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[kind]
    torch.testing.assert_close(trained.weight(STEPS, gamma), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_at_zero_terminal_snr_are_their_limits(kind: str) -> None:
    weight = objective(kind, zero_snr=True).weight(torch.tensor([999]), 5.0)
    assert weight is not None
    limit = {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}[kind]
    assert weight.item() == pytest.approx(limit, abs=1e-6)


def test_velocity_at_zero_terminal_snr_is_minus_the_sample() -> None:
    trained = objective("v_prediction", zero_snr=True)
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([999])
    noised = trained.add_noise(latents, noise, steps)
    torch.testing.assert_close(noised, noise, rtol=0, atol=1e-6)
    target = trained.target(latents, noise, steps)
    torch.testing.assert_close(target, -latents, rtol=0, atol=1e-6)


def test_targets_undo_the_noising() -> None:
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, len(STEPS), 4, 8, 8, generator=generator)
    alpha = objective().scheduler.alphas_cumprod[STEPS].view(-1, 1, 1, 1)
    noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    targets = {kind: objective(kind).target(latents, noise, STEPS) for kind in KINDS}
    assert targets["epsilon"] is noise and targets["sample"] is latents
    velocity = targets["v_prediction"]
    torch.testing.assert_close(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)
    back = alpha.sqrt() * noised - (1 - alpha).sqrt() * velocity  # x0 from v (2202.00512, app. D)
    torch.testing.assert_close(back, latents, rtol=1e-4, atol=1e-5)


def test_an_unknown_prediction_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="edm"):
        odd = objective()
        odd.scheduler.register_to_config(prediction_type="edm")
        odd.target(torch.ones(1), torch.ones(1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDM noise schedule"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM noise schedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "edm"}, "prediction_type 'edm'"),
    ],
)
def test_other_schedules_are_named(config, says) -> None:
    assert says in str(schedule_refusal(config))
    assert schedule_refusal({"_class_name": "PNDMScheduler"}) is None
