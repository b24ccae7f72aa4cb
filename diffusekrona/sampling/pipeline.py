"""From a base model and prompts to pictures: load, encode, denoise, decode.

Every picture has its own CPU generator, seeded by its seed, so neither the batch size, nor the
device, nor the other pictures of a run change what a seed gives.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import free_memory
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm

from ..adapters.groups import enable_adapters
from ..bases.base import Family
from ..bases.families import denoiser_of, family_of_pipeline, identify, resembling
from ..bases.loading import (
    aligned,
    check_timesteps,
    or_of_fp16_files,
    report_assumed,
)
from ..bases.meta import trusting_no_config
from ..bases.offload import offload_blocks, offload_layers
from ..bases.resolve import resolve_base
from ..bases.schedulers import load_sampler, schedule_options
from ..bases.single_file_parts import SingleFile
from ..bases.vae import channels_last
from ..common.errors import UserError, reason_of, shortened
from ..common.paths import as_path
from ..common.pictures import to_image
from ..common.prompts import warn_of_syntax

log = logging.getLogger(__name__)


# --- loading -----------------------------------------------------------------------------------


def load_pipeline(
    base: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae: str | None = None,
    single_file_config: str | None = None,
    prediction_type: str | None = None,
    rescale_betas_zero_snr: bool | None = None,
    **options: Any,
) -> Any:
    """A base model as diffusers' text-to-image pipeline of its family.

    The VAE stays in fp32 whatever `dtype` is, since some overflow in fp16 and give black pictures;
    one whose config says that it does not (`force_upcast: false`) follows `dtype`.

    Args:
        base: a hub name, a folder, a single file, or the name of a bundled model.
        vae: hub name or folder of another VAE.
        single_file_config: folder with the configs and tokenizers of a single file.
        prediction_type, rescale_betas_zero_snr: in place of what the base says.
        options: `revision`, `variant` …, as `from_pretrained` takes them; None is left out.

    Raises:
        UserError: the base or the VAE cannot be loaded, no family claims the base, or its family
            has no such noise schedule to change.
    """
    import diffusers

    base = resolve_base(base, single_file_config)
    report_assumed(base, prediction_type)
    options = {key: value for key, value in options.items() if value is not None}
    family, _ = identify(base, options.get("revision"))
    schedule = schedule_options(prediction_type, rescale_betas_zero_snr)
    family.check_loss_settings(schedule)
    parts = family.pipeline_parts()
    if vae is not None:
        parts["vae"] = family.load_vae(base, vae, dtype=torch.float32)
    place = base
    if isinstance(base, SingleFile):
        place, options, parts = str(base.configs), {}, _parts_of(family, base, dtype, parts)
    pipeline = _from_pretrained(
        getattr(diffusers, family.pipeline), place, _dtypes(dtype), **parts, **options
    )
    if schedule:
        pipeline.scheduler = load_sampler(base, options.get("revision"), **schedule)
    if not pipeline.vae.config.get("force_upcast", True):
        pipeline.vae.to(dtype)
    return pipeline.to(device, silence_dtype_warnings=True)


def _parts_of(
    family: Family, base: SingleFile, dtype: torch.dtype, parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Every model and tokenizer of a single file, but for those that are there already."""
    loaded = {
        family.denoiser: family.load_denoiser(base, dtype=dtype),
        **family.load_text_encoders(base, dtype=dtype),
        **dict(zip(family.tokenizers, family.load_tokenizers(base), strict=True)),
    }
    if "vae" not in parts:
        loaded["vae"] = family.load_vae(base, dtype=torch.float32)
    return {**loaded, **parts}


def place(
    pipeline: Any, device: torch.device | str, low_vram: bool = False, by_blocks: bool = False
) -> None:
    """Put a pipeline on the device that it is to draw on.

    Args:
        low_vram: on a GPU only the model that is at work, and of large ones the block or layer;
            pictures are decoded in tiles.
        by_blocks: on a GPU only the denoiser's block that is at work.
    """
    device, denoiser = torch.device(device), denoiser_of(pipeline)
    family, on_gpu = resembling(denoiser.config), device.type == "cuda"
    large = family is not None and family.large
    if on_gpu and (by_blocks or (low_vram and large)):
        offload_blocks(denoiser, device)
        others = (part for part in pipeline.components.values() if isinstance(part, nn.Module))
        for part in others:
            if part is pipeline.vae or (part is not denoiser and not large):
                part.to(device)
            elif part is not denoiser:
                offload_layers(part, device)
    elif on_gpu and low_vram:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device, silence_dtype_warnings=True)
    if low_vram:
        pipeline.vae.enable_tiling()


def load_refiner(pipeline: Any, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """An image-to-image pipeline that finishes what `pipeline` begins, sharing its VAE.

    It continues from the base's latents with the same sampler: others scale them
    otherwise.

    Raises:
        UserError: it cannot be loaded, or one of the two does not support a refiner.
    """
    from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image

    if "denoising_end" not in inspect.signature(pipeline.__call__).parameters:
        raise UserError("This base model cannot hand over to a refiner: leave out --refiner.")
    if as_path(name).is_file():
        raise UserError(f"--refiner {name} is a file: give a diffusers folder or a hub name.")
    name = resolve_base(name)
    options = {key: value for key, value in options.items() if value is not None}
    refiner = _from_pretrained(
        AutoPipelineForImage2Image, name, _dtypes(dtype), vae=pipeline.vae, **options
    )
    if "denoising_start" not in inspect.signature(refiner.__call__).parameters:
        raise UserError(f"{name} is not a refiner: it cannot continue from another base.")
    refiner.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    return refiner


def _dtypes(dtype: torch.dtype) -> dict[str, torch.dtype]:
    return {"default": dtype, "vae": torch.float32}


def _from_pretrained(kind: Any, name: str, dtype: Any, **options: Any) -> Any:
    check_timesteps(name, options.get("revision"))
    with trusting_no_config(repr(name)):
        try:
            pipeline = or_of_fp16_files(
                functools.partial(kind.from_pretrained, name, dtype=dtype), **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"Cannot load {name!r}: {shortened(reason_of(error), 300)} (check the name, the "
                "network or your hub login, or give a local diffusers folder)."
            ) from error
    for part in pipeline.components.values():
        aligned(part)
    return pipeline


# --- text --------------------------------------------------------------------------------------


@torch.no_grad()
def encode(
    pipeline: Any, prompts: Sequence[str], negative_prompt: str | None = None
) -> dict[str, torch.Tensor]:
    """Prompts to text states by the pipeline's own text encoders, on the CPU.

    Returns:
        "prompt_embeds" (n, tokens, width), and what else the family has, one row per prompt; with
        "negative_" before it, the same of the negative prompt, in one row. Words past the last
        token that a text encoder reads are named in a warning.
    """
    family = family_of_pipeline(pipeline)
    encoders = {name: getattr(pipeline, name) for name in family.text_encoders}
    tokenizers = [getattr(pipeline, name) for name in family.tokenizers]

    def states_of(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        states = family.encode_text(encoders, family.tokenize(tokenizers, texts))
        return {name: tensor.cpu() for name, tensor in states.items()}

    distinct = list(dict.fromkeys(prompts))
    warn_of_syntax([*distinct, negative_prompt or ""])
    # One by one: in a batch, a prompt's states would depend on the others in their last bits.
    pieces = [states_of([prompt]) for prompt in distinct]
    rows = [distinct.index(prompt) for prompt in prompts]
    states = {name: torch.cat([piece[name] for piece in pieces])[rows] for name in pieces[0]}
    if negative_prompt is None and pipeline.config.get("force_zeros_for_empty_prompt"):
        return _with_zero_negative(states)
    negative = states_of([negative_prompt or ""])
    return states | {f"negative_{name}": tensor for name, tensor in negative.items()}


def _with_zero_negative(states: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    zeros = {f"negative_{name}": torch.zeros_like(t[:1]) for name, t in states.items()}
    return {**states, **zeros}


# --- pictures ----------------------------------------------------------------------------------


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    negative_prompt: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    progress: bool = True,
    **text_states: torch.Tensor,
) -> list[Image.Image]:
    """One picture for each prompt and seed, taken in pairs.

    Args:
        pipeline: of `load_pipeline` or `Family.build_pipeline`; it needs no text encoders when
            text states are given. Adapters on it, merged or live, take part.
        size: (height, width) in pixels; the base's own if not given.
        text_states: `prompt_embeds`, `negative_prompt_embeds` and, where the family has them,
            `pooled_prompt_embeds`, `negative_pooled_prompt_embeds`: one row per prompt, or one
            row for all. The negative ones may be left out where the base takes zeros for them.

    Raises:
        ValueError: `guidance` needs a negative text state and there is none; not as many seeds as
            prompts.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts for {len(seeds)} seeds: give one seed per prompt")
    states = dict(text_states) or encode(pipeline, prompts, negative_prompt)
    if guidance > 1 and "negative_prompt_embeds" not in states:
        if not pipeline.config.get("force_zeros_for_empty_prompt"):
            raise ValueError("guidance above 1 needs negative_prompt_embeds beside prompt_embeds")
        states = _with_zero_negative(states)
    made = iter_pictures(
        pipeline,
        states,
        list(enumerate(seeds)),
        steps=steps,
        guidance=guidance,
        size=size,
        batch_size=batch_size,
        progress=progress,
    )
    return list(made)


Finish = Callable[..., torch.Tensor]


@torch.no_grad()
def iter_pictures(
    pipeline: Any,
    states: Mapping[str, torch.Tensor],
    jobs: Sequence[tuple[int, int]],
    *,
    steps: int,
    guidance: float,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    progress: bool = True,
    finish: Finish | None = None,
    handover: float | None = None,
    adapter_steps: tuple[float, float] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[Image.Image]:
    """Pictures one by one, as they come out.

    Args:
        states: text states, one row per prompt; a single row is used for all prompts.
        jobs: (row of the text states, seed) of each picture.
        finish: `refine_with(…)`, which takes the latents over at `handover`, a part of the way
            from 0 to 1.
        adapter_steps: the part of the steps, from 0 (noise) to 1 (picture), in which the
            denoiser's adapters take part; they must be live, not merged.
        on_step: called after every step; what it raises ends the drawing.
    """
    height, width = size or (None, None)
    if pipeline._execution_device.type == "cpu":  # measured there only
        channels_last(pipeline.vae)
    family = family_of_pipeline(pipeline)
    device, dtype = pipeline._execution_device, denoiser_of(pipeline).dtype
    _check_sides(pipeline, family, size)
    _check_steps(pipeline, steps)
    pipeline.set_progress_bar_config(disable=True)
    own_steps, extra = steps, {}
    if finish is not None and handover is not None:
        own_steps, extra = int(steps * handover), {"denoising_end": handover}
        if adapter_steps:  # the pipeline counts its own steps only
            adapter_steps = (adapter_steps[0] / handover, adapter_steps[1] / handover)
    chunks = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    with tqdm(total=steps * len(chunks), desc="pictures", unit="step", disable=not progress) as bar:
        for chunk in chunks:
            rows = [row for row, _ in chunk]
            generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in chunk]
            text = {
                name: tensor[rows if len(tensor) > 1 else [0] * len(rows)].to(device, dtype)
                for name, tensor in states.items()
            }
            with explain_out_of_memory(), _adapters_for_some_steps(pipeline, adapter_steps):
                latents = family.draw(
                    pipeline,
                    text,
                    height=height,
                    width=width,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generators,
                    callback_on_step_end=_ticker(bar, own_steps, on_step, adapter_steps),
                    **extra,
                )
                if finish is not None:
                    ticker = _ticker(bar, steps - own_steps, on_step)
                    latents = finish(latents, rows, generators, steps, guidance, ticker)
            for latent in latents:
                with explain_out_of_memory():
                    image = decode(pipeline, latent)
                yield image


def _check_steps(pipeline: Any, steps: int) -> None:
    """Raises UserError for more steps than the sampler's noise schedule has."""
    config = pipeline.scheduler.config
    limits = (config.get("num_train_timesteps"), config.get("original_inference_steps"))  # LCM's
    most = min((limit for limit in limits if isinstance(limit, int)), default=steps)
    if steps > most:
        kind = type(pipeline.scheduler).__name__
        raise UserError(f"{steps} denoising steps are too many: {kind} has {most} on this base.")


def _check_sides(pipeline: Any, family: Family, size: tuple[int, int] | None) -> None:
    step = family.side_step(denoiser_of(pipeline).config, pipeline.vae.config)
    if size is not None and any(side % step for side in size):
        height, width = size
        raise UserError(
            f"{family.title} draws pictures whose sides are multiples of {step} pixels, not "
            f"{width} x {height}: change --height and --width."
        )


@contextmanager
def explain_out_of_memory() -> Generator[None]:
    """Raises UserError, with what to do, where the GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "Out of GPU memory: draw fewer pictures at once (--batch_size; of a study "
            "--image_batch_size), smaller ones (--height, --width), or add --low_vram."
        ) from error


@contextmanager
def _adapters_for_some_steps(
    pipeline: Any, adapter_steps: tuple[float, float] | None
) -> Generator[None]:
    """Adapters on or off as the first step asks; on again afterwards, also where drawing failed."""
    if adapter_steps:
        enable_adapters(denoiser_of(pipeline), adapter_steps[0] <= 0)
    try:
        yield
    finally:
        if adapter_steps:
            enable_adapters(denoiser_of(pipeline), True)


def _ticker(
    bar: tqdm[Any],
    steps: int,
    on_step: Callable[[], object],
    adapter_steps: tuple[float, float] | None = None,
) -> Callable[..., dict[str, Any]]:
    """A callback that moves `bar` by `steps` in all, and switches adapters on and off for the step
    that comes next. Some schedulers call the denoiser more often than once per step."""

    def tick(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        calls = pipeline.num_timesteps
        bar.update((step + 1) * steps // calls - step * steps // calls)
        on_step()
        if adapter_steps:
            start, end = adapter_steps
            enable_adapters(denoiser_of(pipeline), start <= (step + 1) / calls < end)
        return values

    return tick


def refine_with(
    refiner: Any, prompts: Sequence[str], negative_prompt: str | None, handover: float
) -> Finish:
    """What `iter_pictures` needs to let `refiner` take the last part of the steps."""
    refiner.set_progress_bar_config(disable=True)

    def finish(
        latents: torch.Tensor,
        rows: Sequence[int],
        generators: list[torch.Generator],
        steps: int,
        guidance: float,
        ticker: Callable[..., dict[str, Any]],
    ) -> torch.Tensor:
        return refiner(
            prompt=[prompts[row] for row in rows],
            negative_prompt=None if negative_prompt is None else [negative_prompt] * len(rows),
            image=latents.to(denoiser_of(refiner).dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            denoising_start=handover,
            output_type="latent",
            callback_on_step_end=ticker,
        ).images

    return finish


@torch.no_grad()
def decode(pipeline: Any, latent: torch.Tensor) -> Image.Image:
    """One latent (c, h, w) to a picture, in the VAE's own precision.

    Raises:
        UserError: the picture has values that are not finite.
    """
    family, vae = family_of_pipeline(pipeline), pipeline.vae
    latents = latent.to(pipeline._execution_device, vae.dtype).unsqueeze(0)
    try:
        pixels = family.decode_latents(vae, latents)[0]
    except torch.OutOfMemoryError:
        if vae.use_tiling:
            raise
        log.warning("out of GPU memory in the decoder: decoding in tiles")
        free_memory()
        vae.enable_tiling()
        pixels = family.decode_latents(vae, latents)[0]
    if not torch.isfinite(pixels).all():
        dtype = str(denoiser_of(pipeline).dtype).removeprefix("torch.")
        raise UserError(
            "A picture came out as NaN, which would be black: lower the adapter's weight, or give "
            f"--mixed_precision no (now {dtype})."
        )
    return to_image(pixels)
