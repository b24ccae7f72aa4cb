"""The loss, held to numbers: the prior's share, noise of single samples, timesteps."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from diffusekrona.bases.diffusion import DiffusionObjective
from diffusekrona.training.losses import draw, dreambooth_loss

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
