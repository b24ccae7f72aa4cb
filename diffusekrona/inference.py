"""Pictures from a base model and adapters: `python -m diffusekrona.inference --help`.

Adapters are merged into the base weights for good, so that a picture costs what it costs on the
base, unless `--no_merge` leaves them live. Each picture is saved with its recipe as soon as it is
made, and a labelled grid at the end. Launched by accelerate, the processes share the pictures.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .adapters.mixing import (
    WeightedAdapter,
    apply_adapters,
    choose_base,
    read_adapters,
    reading_options,
)
from .bases.precision import dtype_of
from .bases.schedulers import set_scheduler
from .common.devices import choose_device, process_state
from .common.errors import UserError, exit_on_user_error, writing
from .common.files import slug
from .sampling.settings import (
    InferenceSettings,
    MachineSettings,
    ModelSettings,
    PicturesSettings,
    parse_settings,
    parse_steps,
    precision_or,
    read_prompts,
)

log = logging.getLogger(__name__)

_MOST_GRID_PIXELS = 1e8  # about what image viewers still open


def build(
    model: ModelSettings,
    machine: MachineSettings,
    base: str,
    adapters: Sequence[WeightedAdapter],
    state: Any,
    scheduler: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> Any:
    """The pipeline and, if asked for, its refiner, ready to draw on this process's device.

    Args:
        reading: how the base is read, of `adapters.mixing.reading_options`.
    """
    from .bases.families import denoiser_of, family_of_pipeline
    from .bases.quantisation import quantise
    from .bases.resolve import drawing_defaults
    from .common.cpu_memory import keep_freed_memory
    from .sampling.pipeline import load_pipeline, load_refiner, place

    device = choose_device(machine.device, state.device)
    keep_freed_memory(device)
    options: dict[str, Any] = {"revision": model.revision, "variant": model.variant}
    options |= reading or {}
    defaults = drawing_defaults(base, model.revision, options.get("single_file_config"))
    dtype = dtype_of(precision_or(machine.mixed_precision, defaults, device))
    pipeline = load_pipeline(base, dtype, "cpu", model.vae, **options)
    in_fp8 = machine.quantize_base != "none"  # where merged adapters would be rounded
    apply_adapters(pipeline, adapters, merge=model.merges and not in_fp8)
    quantise(denoiser_of(pipeline), machine.quantize_base, family_of_pipeline(pipeline).block_lists)
    if scheduler:
        set_scheduler(pipeline, scheduler)
    refiner = load_refiner(pipeline, model.refiner, dtype) if model.refiner else None
    for part in filter(None, (pipeline, refiner)):
        place(part, device, machine.low_vram, machine.group_offload)
    return pipeline, refiner


def with_defaults(
    settings: InferenceSettings, base: str, reading: Mapping[str, Any]
) -> InferenceSettings:
    """The settings with the base's steps and guidance, where none are given."""
    from .bases.resolve import drawing_defaults

    config = reading.get("single_file_config")
    defaults = drawing_defaults(base, settings.model.revision, config)
    return replace(settings, drawing=settings.drawing.resolved(defaults))


# --- pictures ------------------------------------------------------------------------------------


def recipe_of(
    settings: InferenceSettings, base: str, adapters: Sequence[WeightedAdapter], pipeline: Any
) -> dict[str, Any]:
    """What all pictures of a run share of their recipe."""
    import diffusers
    import torch
    import transformers

    from . import __version__
    from .bases.families import denoiser_of

    model, drawing, kind = settings.model, settings.drawing, settings.machine.quantize_base
    versions = {"diffusekrona": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return {
        "negative_prompt": drawing.negative_prompt,
        "steps": drawing.num_inference_steps,
        "guidance": drawing.guidance_scale,
        "scheduler": type(pipeline.scheduler).__name__,
        "base": base,
        "adapters": [mixed.recipe() for mixed in adapters],
        "merged": bool(adapters) and model.merges and kind == "none",
        **({"quantize_base": kind} if kind != "none" else {}),
        **({"adapter_steps": model.adapter_steps} if model.adapter_steps else {}),
        "vae": model.vae,
        "refiner": model.refiner,
        "refiner_start": model.refiner_start if model.refiner else None,
        "dtype": str(denoiser_of(pipeline).dtype).removeprefix("torch."),
        "versions": versions,
    }


def first_number(folder: Path) -> int:
    """One more than the highest number of a picture in `folder`."""
    matches = (re.match(r"(\d{4,9})_", path.name) for path in folder.glob("*.png"))
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def choose_prompts(pictures: PicturesSettings, adapters: Sequence[WeightedAdapter]) -> list[str]:
    """The prompts asked for, or the one that the adapter was trained with. UserError if none."""
    prompts = [prompt.strip() for prompt in pictures.prompt]
    if pictures.prompt_file:
        prompts += read_prompts(pictures.prompt_file)
    named = (mixed.adapter.metadata.get("instance_prompt") for mixed in adapters)
    prompts = prompts or [prompt for prompt in named if prompt][:1]
    if not prompts:
        raise UserError("No prompt: give --prompt or --prompt_file.")
    return prompts


def draw(
    settings: InferenceSettings,
    prompts: Sequence[str],
    pipeline: Any,
    refiner: Any,
    recipe: dict[str, Any],
    state: Any,
    on_step: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Draw this process's share of prompts times seeds, and save each picture as it comes out.

    Args:
        on_step: called after every denoising step; what it raises ends the drawing.

    Returns:
        The paths of all pictures of the run, those of other processes too: prompt by prompt. A name
        that another run takes in the meantime is left to it.
    """
    from accelerate.utils import gather_object

    from .sampling.grids import save_new_png
    from .sampling.pipeline import encode, iter_pictures, refine_with

    drawing, seeds = settings.drawing, settings.pictures.seeds
    steps, guidance = drawing.num_inference_steps, drawing.guidance_scale
    assert steps is not None and guidance is not None, "settings without `with_defaults`"
    folder, start = settings.pictures.output_dir, settings.model.refiner_start
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [(row, seed) for row in range(len(prompts)) for seed in seeds]
    first = first_number(folder)
    state.wait_for_everyone()  # all have counted before one adds to the folder
    paths = [
        folder / f"{first + n:04d}_{slug(prompts[row])}_seed{seed}.png"
        for n, (row, seed) in enumerate(jobs)
    ]
    mine = range(state.process_index, len(jobs), state.num_processes)
    images = iter_pictures(
        pipeline,
        encode(pipeline, prompts, drawing.negative_prompt),
        [jobs[n] for n in mine],
        steps=steps,
        guidance=guidance,
        size=drawing.size,
        batch_size=settings.machine.batch_size,
        progress=state.is_main_process,
        finish=refiner and refine_with(refiner, prompts, drawing.negative_prompt, start),
        handover=start,
        adapter_steps=parse_steps(settings.model.adapter_steps),
        on_step=on_step,
    )
    saved = []
    for n, image in zip(mine, images, strict=True):
        row, seed = jobs[n]
        own = {"prompt": prompts[row], "seed": seed, "height": image.height, "width": image.width}
        saved.append((n, save_new_png(image, paths[n], {**own, **recipe})))
    state.wait_for_everyone()
    everyone = gather_object(saved) if state.num_processes > 1 else saved
    return [path for _, path in sorted(everyone)]


def save_grid(
    settings: InferenceSettings,
    prompts: Sequence[str],
    paths: Sequence[Path],
    base: str,
    adapters: Sequence[WeightedAdapter],
) -> Path:
    """`grid.png` of a run: one row per prompt, one column per seed. Replaces an older one."""
    from .common.pictures import open_png
    from .sampling.grids import labelled_grid, save_png

    images = []
    for path in paths:
        with open_png(path) as image:
            images.append(image.convert("RGB"))
    drawing, pictures = settings.drawing, settings.pictures
    across = len(pictures.seeds)
    rows = [images[start : start + across] for start in range(0, len(images), across)]
    cell = int((_MOST_GRID_PIXELS / len(images)) ** 0.5)
    names = ", ".join(mixed.title for mixed in adapters) or "no adapter"
    title = f"{Path(base).name} · {names} · "
    title += f"{drawing.num_inference_steps} steps · guidance {drawing.guidance_scale:g}"
    grid = labelled_grid(
        rows,
        prompts,
        [f"seed {seed}" for seed in pictures.seeds],
        title,
        cell if cell < 512 else None,
    )
    save_png(grid, pictures.output_dir / "grid.png")
    return pictures.output_dir / "grid.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: parse, build, draw."""
    settings = parse_settings(argv)
    model, machine = settings.model, settings.machine
    from .bases.loading import quiet_libraries

    quiet_libraries()  # before the import below, which loads what it quiets
    from .adapters.groups import parse_groups
    from .data.disk_cache import report_other_base

    state = process_state(machine.device)
    level = logging.WARNING if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    try:
        groups = parse_groups(model.blocks, model.projections, model.attention)
        adapters = read_adapters(model.adapter, groups)
        prompts = choose_prompts(settings.pictures, adapters)
        reading = reading_options(adapters, settings.reading.options())
        base = choose_base(
            model.pretrained_model_name_or_path,
            adapters,
            model.revision,
            reading.get("single_file_config"),
        )
        report_other_base(base, adapters)
        settings = with_defaults(settings, base, reading)
        scheduler = settings.drawing.scheduler
        pipeline, refiner = build(model, machine, base, adapters, state, scheduler, reading)
        recipe = recipe_of(settings, base, adapters, pipeline)
        paths = draw(settings, prompts, pipeline, refiner, recipe, state)
        if state.is_main_process:
            grid = save_grid(settings, prompts, paths, base, adapters)
            count = f"{len(paths)} picture{'s' * (len(paths) != 1)}"
            print(f"{count} in {settings.pictures.output_dir}, together in {grid}")
    finally:
        state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
