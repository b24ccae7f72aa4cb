"""Latents: the sample, and normalisation as diffusers undoes it."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.resolve import resolve_base
from diffusekrona.bases.vae import denormalise, load_vae, normalise, read_vae_config

STATISTICS = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 4.0], "scaling_factor": 0.5}


def test_latents_are_the_distributions_sample_scaled_as_diffusers_scales_it() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25])
    moments = torch.cat([mean, std]).view(1, 4, 1, 1)
    noise = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    config = {"scaling_factor": 0.5, "shift_factor": None}
    plain = FAMILIES["sd1"].sample_latents(moments, noise, config)
    assert plain.flatten().tolist() == pytest.approx([(1 + 1) * 0.5, (-2 - 0.25) * 0.5])


def test_means_and_deviations_of_channels_are_taken_out() -> None:
    latents = torch.tensor([4.5, 7.0]).view(1, 2, 1, 1)
    normal = normalise(latents, STATISTICS)
    assert normal.flatten().tolist() == pytest.approx([(4.5 - 0.5) * 0.5 / 2, (7 + 1) * 0.5 / 4])


@pytest.mark.parametrize("more", [{}, {"shift_factor": 0.3}, STATISTICS])
def test_normalising_is_undone_in_drawing(more) -> None:
    config = {"scaling_factor": 0.18215, **more}
    latents = torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(denormalise(normalise(latents, config), config), latents)


def test_pictures_go_through_a_vae_with_statistics_and_back() -> None:
    """A step of diffusers' own SDXL pipeline: latents * std / scaling_factor + mean."""
    vae = tiny_models.vae()
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.5, 2.0, 0.5, 1.0]}
    vae.register_to_config(**statistics)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in statistics.values())
    normal = torch.randn(1, 4, 8, 8)
    expected = vae.decode(normal * std / vae.config.scaling_factor + mean).sample
    pixels = FAMILIES["sdxl"].decode_latents(vae, normal)
    torch.testing.assert_close(pixels, expected)


def test_a_vaes_config_is_complete() -> None:
    from diffusers import AutoencoderKL

    given = read_vae_config(resolve_base("pocket"))
    loaded = load_vae(resolve_base("pocket")).config
    for key, value in given.items():
        assert loaded[key] == value or list(loaded[key]) == value or key.startswith("_"), key
    assert AutoencoderKL().config.scaling_factor == 0.18215  # what old configs leave to diffusers
