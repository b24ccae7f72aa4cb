"""Pictures drawn during training, so that a person sees the subject arrive."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map

from ..bases.base import Family
from ..bases.precision import dtype_of
from ..bases.schedulers import load_sampler
from ..bases.settings import BaseSettings, PrecisionSettings
from ..bases.vae import tile_vae
from ..common.devices import main_works_alone
from ..common.errors import UserError, shortened
from ..common.pictures import load_square, open_png
from ..data.cache import Data, cache_texts
from ..data.sources import some_photos
from ..sampling.grids import Grid, read_recipe, save_png
from ..sampling.pipeline import generate
from .resolved_run import ResolvedRun
from .settings import ValidationSettings

log = logging.getLogger("diffusekrona")


def validate(
    validation: ValidationSettings,
    base: BaseSettings,
    precision: PrecisionSettings,
    resolved: ResolvedRun,
    accelerator: Any,
    denoiser: nn.Module,
    data: Data,
    folder: Path,
    photos: Path,
    step: int,
) -> None:
    """Draw the validation prompts, on the main process.

    A failure costs no training and is logged. Only before the first step is it raised: a failure
    there would repeat at every validation.

    Args:
        folder: where the pictures are saved; photos: --instance_data_dir, to compare with.
    """
    if not validation.validation_prompt:
        return
    with main_works_alone(accelerator, "validation pictures"):
        if not accelerator.is_main_process:
            return
        try:
            states = text_states(validation, base, resolved, data)
            vae = load_decoder(base, precision, resolved)
            images = draw_validation(
                resolved.family,
                resolved.base,
                denoiser,
                states,
                validation.validation_prompt,
                folder,
                step,
                num_images=validation.num_validation_images,
                steps=validation.validation_inference_steps,
                guidance=validation.validation_guidance_scale,
                size=(resolved.resolution, resolved.resolution),
                vae=vae,
                sampler=load_sampler(resolved.base, revision=base.revision, **base.schedule()),
                photos=some_photos(photos, MOST_PHOTOS),
            )
            show_in_trackers(accelerator, images, step)
        except Exception as error:
            if step == 0:
                raise
            log.warning("no validation pictures at step %d: %s", step, shortened(error, 300))


def text_states(
    validation: ValidationSettings, base: BaseSettings, resolved: ResolvedRun, data: Data
) -> Mapping[str, Any]:
    """The prompts' text states: from the cache, or through the encoders that are trained."""
    if not data.text_encoders:
        return data.states
    tokenizers = resolved.family.load_tokenizers(resolved.base, revision=base.revision)
    prompts = [*validation.validation_prompt, ""]
    return cache_texts(resolved.family, tokenizers, data.text_encoders, prompts)


def load_decoder(base: BaseSettings, precision: PrecisionSettings, resolved: ResolvedRun) -> Any:
    """The VAE, set to decode in tiles if asked for."""
    vae = resolved.family.load_vae(
        resolved.base,
        base.pretrained_vae_model_name_or_path,
        torch_dtype=dtype_of(precision.vae_dtype),
        variant=base.variant,
        revision=base.revision,
    )
    if precision.vae_tiling:
        tile_vae(vae)
    return vae


MOST_PHOTOS = 8  # of the subject, in the first column of the grid


@torch.no_grad()
def draw_validation(
    family: Family,
    base: str,
    denoiser: Any,
    states: Mapping[str, Mapping[str, torch.Tensor]],
    prompts: Sequence[str],
    folder: Path,
    step: int,
    *,
    num_images: int,
    steps: int,
    guidance: float,
    size: tuple[int, int],
    vae: Any,
    sampler: Any,
    photos: Sequence[Path] = (),
) -> list[Image.Image]:
    """Draw every prompt with seeds 0, 1 … and renew `folder/grid.png`, one row per step.

    Args:
        denoiser: the denoiser with its adapter live, of any dtype.
        states: cached text states of the prompts and of "" (for guidance), as `cache_texts` gives.
        size: (height, width) in pixels.
        vae: loaded for this and dropped by the caller, so that it does not stay during training.
        photos: the subject's, for the first column of the grid.
    """
    device = next(denoiser.parameters()).device
    models = {family.denoiser: denoiser, "vae": vae.to(device), "scheduler": sampler}
    pipeline = family.build_pipeline(**models)
    jobs = [(prompt, seed) for prompt in prompts for seed in range(num_images)]
    embeds = {}
    for name in states[""]:
        batch = torch.cat([states[prompt][name] for prompt, _ in jobs])
        embeds[name] = batch.to(device, denoiser.dtype)
        # Where the base takes zeros for an empty prompt, as at inference, none is given.
        if not pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.cat([states[""][name]] * len(jobs))
            embeds[f"negative_{name}"] = empty.to(device, denoiser.dtype)
    was_training = denoiser.training
    denoiser.eval()
    # accelerate lets a trained model return fp32, and samplers continue in that precision.
    cast = denoiser.register_forward_pre_hook(_cast_latents, with_kwargs=True)
    try:
        images = generate(
            pipeline,
            [prompt for prompt, _ in jobs],
            [seed for _, seed in jobs],
            steps=steps,
            guidance=guidance,
            size=size,
            progress=False,
            **embeds,
        )
    finally:
        cast.remove()
        denoiser.train(was_training)
    for number, ((prompt, seed), image) in enumerate(zip(jobs, images, strict=True)):
        recipe = {"prompt": prompt, "seed": seed, "step": step, "base": base}
        save_png(image, folder / f"step-{step:06d}-{number:02d}.png", recipe)
    grid = validation_grid(folder, [f"{prompt} · seed {seed}" for prompt, seed in jobs])
    shown = photos[: len(grid.rows)]
    grid = grid.with_photos([load_square(path) for path in shown])
    save_png(grid.image(), folder / "grid.png", {"base": base})
    return images


def _cast_latents(
    denoiser: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first argument, which is the latents, in the denoiser's precision."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(denoiser.dtype)

    if inputs:
        return (tree_map(cast, inputs[0]), *inputs[1:]), named
    name = next(iter(named))
    return inputs, {**named, name: tree_map(cast, named[name])}


def remove_validation(folder: Path) -> None:
    """Delete the pictures that `draw_validation` named, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(r"step-\d{6,}-\d{2,}\.png|grid\.png", path.name) and _is_ours(path):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a picture carries the recipe that our pictures have."""
    try:
        return read_recipe(path) is not None
    except UserError:
        return False


def validation_grid(folder: Path, labels: Sequence[str]) -> Grid:
    """All pictures saved in `folder`: one row per step, one column per prompt and seed."""
    rows: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("step-*.png")):
        match = re.fullmatch(r"step-(\d+)-(\d+)\.png", path.name)
        if match:
            rows.setdefault(int(match[1]), {})[int(match[2])] = path
    pictures = (
        tuple(_picture(row[n]) if n in row else None for n in range(len(labels)))
        for row in rows.values()
    )
    named = zip((f"step {step}" for step in rows), pictures, strict=True)
    return Grid("", tuple(labels), tuple(named))


def _picture(path: Path) -> Image.Image | None:
    try:
        with open_png(path) as image:
            return image.convert("RGB")
    except Exception:  # Pillow meets damaged files with errors of many kinds
        log.warning("%s is damaged and left out of the grid", path)
        return None


def show_in_trackers(accelerator: Any, images: Sequence[Any], step: int) -> None:
    """Put validation pictures where the losses are."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            stack = np.stack([np.asarray(image) for image in images])
            tracker.writer.add_images("validation", stack, step, dataformats="NHWC")
        elif tracker.name == "wandb":
            import wandb  # pyright: ignore[reportMissingImports] # optional

            shown = [wandb.Image(image, caption=f"step {step}") for image in images]
            # It drops what is of an earlier step, as the result of an early stop is.
            tracker.log({"validation": shown}, step=max(step, tracker.run.step))
