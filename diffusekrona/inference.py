"""Pictures from a base model and adapters: `python -m diffusekrona.inference --help`.

Adapters are merged into the base weights for good, so that a picture costs what it costs on the
base, unless `--no_merge` leaves them live. Each picture is saved with its recipe as soon as it is
made, and a labelled grid at the end. Launched by accelerate, the processes share the pictures.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adapters.mixing import WeightedAdapter, apply_adapters, choose_base, read_adapters
from .bases.precision import dtype_of
from .common.devices import choose_device, process_state
from .common.errors import UserError, exit_on_user_error, writing
from .common.files import slug
from .sampling.inference_args import (
    build_parser,
    check_arguments,
    parse_steps,
    read_prompts,
)
from .sampling.schedulers import set_scheduler

log = logging.getLogger(__name__)

_MOST_GRID_PIXELS = 1e8  # about what image viewers still open


def __getattr__(name: str) -> Any:
    # The library half, under this module's name too. It imports torch, which `--help` need not.
    if name in ("load_pipeline", "generate"):
        from .sampling import pipeline as sampling

        return getattr(sampling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _merges(args: argparse.Namespace) -> bool:
    """Whether adapters are merged for good: not if they are switched on and off on the way."""
    return not (args.no_merge or args.adapter_steps)


def build(
    args: argparse.Namespace, base: str, adapters: Sequence[WeightedAdapter], state: Any
) -> Any:
    """The pipeline and, if asked for, its refiner, ready to draw on this process's device."""

    from .common.cpu_memory import keep_freed_memory
    from .sampling.pipeline import load_pipeline, load_refiner, place

    device = choose_device(args.device, state.device)
    keep_freed_memory(device)
    precision = args.mixed_precision or ("no" if device.type == "cpu" else "fp16")
    dtype = dtype_of(precision)
    options = {"revision": args.revision, "variant": args.variant}
    pipeline = load_pipeline(base, dtype, "cpu", args.vae, **options)
    apply_adapters(pipeline, adapters, merge=_merges(args))
    if args.scheduler:
        set_scheduler(pipeline, args.scheduler)
    refiner = load_refiner(pipeline, args.refiner, dtype) if args.refiner else None
    for part in filter(None, (pipeline, refiner)):
        place(part, device, args.low_vram)
    return pipeline, refiner


# --- pictures ------------------------------------------------------------------------------------


def recipe_of(
    args: argparse.Namespace, base: str, adapters: Sequence[WeightedAdapter], pipeline: Any
) -> dict[str, Any]:
    """What all pictures of a run share of their recipe."""
    import diffusers
    import torch
    import transformers

    from . import __version__
    from .bases.families import denoiser_of

    versions = {"diffusekrona": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return {
        "negative_prompt": args.negative_prompt,
        "steps": args.num_inference_steps,
        "guidance": args.guidance_scale,
        "scheduler": type(pipeline.scheduler).__name__,
        "base": base,
        "adapters": [mixed.recipe() for mixed in adapters],
        "merged": bool(adapters) and _merges(args),
        **({"adapter_steps": args.adapter_steps} if args.adapter_steps else {}),
        "vae": args.vae,
        "refiner": args.refiner,
        "refiner_start": args.refiner_start if args.refiner else None,
        "dtype": str(denoiser_of(pipeline).dtype).removeprefix("torch."),
        "versions": versions,
    }


def first_number(folder: Path) -> int:
    """The number after the highest that a picture in `folder` bears."""
    matches = (re.match(r"(\d{4,9})_", path.name) for path in folder.glob("*.png"))
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def choose_prompts(args: argparse.Namespace, adapters: Sequence[WeightedAdapter]) -> list[str]:
    """The prompts asked for, or the one that the adapter was trained with. UserError if none."""
    prompts = [prompt.strip() for prompt in args.prompt]
    if args.prompt_file:
        prompts += read_prompts(args.prompt_file)
    named = (mixed.adapter.metadata.get("instance_prompt") for mixed in adapters)
    prompts = prompts or [prompt for prompt in named if prompt][:1]
    if not prompts:
        raise UserError("No prompt: give --prompt or --prompt_file.")
    return prompts


def draw(
    args: argparse.Namespace,
    prompts: Sequence[str],
    pipeline: Any,
    refiner: Any,
    recipe: dict[str, Any],
    state: Any,
) -> list[Path]:
    """Draw this process's share of prompts times seeds, and save each picture as it comes out.

    Returns:
        The paths of all pictures of the run, those of other processes too: prompt by prompt. A name
        that another run takes in the meantime is left to it.
    """
    from accelerate.utils import gather_object

    from .sampling.grids import save_new_png
    from .sampling.pipeline import encode, iter_pictures, refine_with

    with writing(args.output_dir):
        args.output_dir.mkdir(parents=True, exist_ok=True)
    jobs = [(row, seed) for row in range(len(prompts)) for seed in args.seeds]
    first = first_number(args.output_dir)
    state.wait_for_everyone()  # all have counted before one adds to the folder
    paths = [
        args.output_dir / f"{first + n:04d}_{slug(prompts[row])}_seed{seed}.png"
        for n, (row, seed) in enumerate(jobs)
    ]
    mine = range(state.process_index, len(jobs), state.num_processes)
    start = args.refiner_start
    images = iter_pictures(
        pipeline,
        encode(pipeline, prompts, args.negative_prompt),
        [jobs[n] for n in mine],
        steps=args.num_inference_steps,
        guidance=args.guidance_scale,
        size=(args.height, args.width) if args.height else None,
        batch_size=args.batch_size,
        progress=state.is_main_process,
        finish=refiner and refine_with(refiner, prompts, args.negative_prompt, start),
        handover=start,
        adapter_steps=parse_steps(args.adapter_steps),
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
    args: argparse.Namespace,
    prompts: Sequence[str],
    paths: Sequence[Path],
    base: str,
    adapters: Sequence[WeightedAdapter],
) -> Path:
    """`grid.png` of a run: a row a prompt, a column a seed. Replaces that of the run before."""
    from .common.pictures import open_png
    from .sampling.grids import labelled_grid, save_png

    images = []
    for path in paths:
        with open_png(path) as image:
            images.append(image.convert("RGB"))
    across = len(args.seeds)
    rows = [images[start : start + across] for start in range(0, len(images), across)]
    cell = int((_MOST_GRID_PIXELS / len(images)) ** 0.5)
    names = ", ".join(mixed.title for mixed in adapters) or "no adapter"
    title = f"{Path(base).name} · {names} · "
    title += f"{args.num_inference_steps} steps · guidance {args.guidance_scale:g}"
    grid = labelled_grid(
        rows, prompts, [f"seed {seed}" for seed in args.seeds], title, cell if cell < 512 else None
    )
    save_png(grid, args.output_dir / "grid.png")
    return args.output_dir / "grid.png"


def main() -> None:
    """Entry point: parse, build, draw."""
    args = build_parser().parse_args()
    check_arguments(args)
    from .bases.loading import quiet_libraries

    quiet_libraries()  # before the import below, which loads what it quiets
    from .adapters.groups import parse_groups

    state = process_state(args.device)
    level = logging.WARNING if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    try:
        groups = parse_groups(args.blocks, args.projections, args.attention)
        adapters = read_adapters(args.adapter, groups)
        prompts = choose_prompts(args, adapters)
        base = choose_base(args.pretrained_model_name_or_path, adapters, args.revision)
        pipeline, refiner = build(args, base, adapters, state)
        recipe = recipe_of(args, base, adapters, pipeline)
        paths = draw(args, prompts, pipeline, refiner, recipe, state)
        if state.is_main_process:
            grid = save_grid(args, prompts, paths, base, adapters)
            count = f"{len(paths)} picture{'s' * (len(paths) != 1)}"
            print(f"{count} in {args.output_dir}, together in {grid}")
    finally:
        state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
