"""The flow-matching objective, against the arithmetic of diffusers' own training examples.

Source: diffusers' examples/dreambooth/train_dreambooth_lora_z_image.py and
train_dreambooth_lora_flux2_klein.py, the steps from latents to loss.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3

from diffusekrona.bases.families import identify
from diffusekrona.bases.flow import FlowObjective
from diffusekrona.common.settings import options_of
from diffusekrona.sampling.pipeline import load_pipeline
from diffusekrona.training.losses import batch_loss
from diffusekrona.training.settings import LossSettings


def example_sigmas(scheduler: FlowMatchEulerDiscreteScheduler, timesteps: torch.Tensor):
    places = [(scheduler.timesteps == t).nonzero().item() for t in timesteps]
    return scheduler.sigmas[places].view(-1, 1, 1, 1)


@torch.no_grad()
def z_image_example(pipeline, pixels, noise, timesteps, prompts) -> tuple:
    """Squared errors and sigmas of one step, as the example for Z-Image computes them."""
    config = pipeline.vae.config
    model_input = pipeline.vae.encode(pixels).latent_dist.mode()
    model_input = (model_input - config.shift_factor) * config.scaling_factor
    sigmas = example_sigmas(pipeline.scheduler, timesteps)
    noisy = (1.0 - sigmas) * model_input + sigmas * noise
    embeds, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    frames = list(noisy.unsqueeze(2).unbind(dim=0))
    output = pipeline.transformer(frames, (1000 - timesteps) / 1000, embeds, return_dict=False)[0]
    prediction = -torch.stack(output, dim=0).squeeze(2)
    target = noise - model_input
    return (prediction.float() - target.float()) ** 2, sigmas


@torch.no_grad()
def flux2_klein_example(pipeline, pixels, noise, timesteps, prompts) -> tuple:
    """Squared errors and sigmas of one step, as the example for FLUX.2-klein computes them."""
    vae = pipeline.vae
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    model_input = pipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    model_input = (model_input - mean) / std
    ids = pipeline._prepare_latent_ids(model_input)
    sigmas = example_sigmas(pipeline.scheduler, timesteps)
    noisy = (1.0 - sigmas) * model_input + sigmas * noise
    embeds, text_ids = pipeline.encode_prompt(list(prompts))
    output = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy),
        timestep=timesteps / 1000,
        guidance=None,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    prediction = pipeline._unpack_latents_with_ids(output, ids)
    target = noise - model_input
    return (prediction.float() - target.float()) ** 2, sigmas


EXAMPLES = {"flux2-klein": flux2_klein_example, "z-image": z_image_example}


@pytest.mark.parametrize("name", EXAMPLES)
@torch.no_grad()
def test_a_steps_loss_is_that_of_diffusers_example(name: str, tmp_path: Path) -> None:
    folder = str(tiny_models.save_pipeline(tmp_path / name, name))
    pipeline, (family, _) = load_pipeline(folder), identify(folder)
    prompts = ["a sks dog", "a photo of a much longer red sks dog on the beach"]
    g = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 64, 64, generator=g) * 2 - 1
    timesteps = pipeline.scheduler.timesteps[[200, 731]]

    moments = family.encode_pictures(pipeline.vae, pixels)
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    noise = torch.randn(2, *shape, generator=g)
    errors, sigmas = EXAMPLES[name](pipeline, pixels, noise, timesteps, prompts)

    objective = family.load_objective(folder)
    latents = family.sample_latents(moments, torch.randn_like(noise), pipeline.vae.config)
    noisy = objective.add_noise(latents, noise, timesteps)
    encoders, tokenizers = {"text_encoder": pipeline.text_encoder}, [pipeline.tokenizer]
    text = family.encode_text(encoders, family.tokenize(tokenizers, prompts))
    family.split_fused(pipeline.transformer)
    prediction = family.predict(pipeline.transformer, noisy, timesteps, text, torch.zeros(2, 6))
    for scheme in options_of(LossSettings)["weighting_scheme"].choices:
        weights = compute_loss_weighting_for_sd3(weighting_scheme=scheme, sigmas=sigmas)
        want = (weights.float() * errors).reshape(2, -1).mean(1).mean()
        weighted = family.load_objective(folder, weighting_scheme=scheme)
        settings = LossSettings(weighting_scheme=scheme)
        got = batch_loss(settings, weighted, prediction, latents, noise, timesteps)
        assert abs(got.item() - want.item()) < 1e-5 * max(1.0, want.item())
    drawn = objective.draw_timestep(g, shape)
    assert drawn.shape == () and 0 < drawn < 1000


def draws(objective: FlowObjective, shape=(16, 128, 128), count: int = 4000) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.stack([objective.draw_timestep(g, shape) for _ in range(count)]) / 1000


def test_timesteps_are_logit_normal_and_shifted_as_the_schedule_says() -> None:
    sigmas = draws(FlowObjective({"shift": 1.0}, 2))
    logits = torch.logit(sigmas.double())
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05
    shifted = draws(FlowObjective({"shift": 3.0}, 2))
    torch.testing.assert_close(shifted, 3 * sigmas / (1 + 2 * sigmas))
    uniform = draws(FlowObjective({"shift": 1.0}, 2, "none"))
    assert abs(uniform.mean() - 0.5) < 0.02 and abs(uniform.std() - 12**-0.5) < 0.01


@pytest.mark.parametrize("side", [32, 128])
def test_a_dynamic_shift_is_the_samplers(side: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    tokens = (side // 2) ** 2
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.2], mu=mu)
    shift = FlowObjective(dict(scheduler.config), 2).shift((16, side, side))
    sigmas = torch.tensor([0.9, 0.5, 0.2])
    torch.testing.assert_close(scheduler.sigmas[:-1], shift * sigmas / (1 + (shift - 1) * sigmas))


def test_the_loss_is_weighted_as_diffusers_weights_it() -> None:
    timesteps = torch.tensor([100.0, 500.0])
    objective = FlowObjective({}, 2, "sigma_sqrt")
    root = objective.weight(timesteps, None, "sigma_sqrt")
    torch.testing.assert_close(root, torch.tensor([100.0, 4.0]))
    bound = objective.weight(torch.tensor([1e-3]), None, "sigma_sqrt")
    torch.testing.assert_close(bound, torch.tensor([1e6]))  # the most that diffusers' scripts draw
    assert objective.weight(timesteps, None, None) is None  # the validation loss has no weights
