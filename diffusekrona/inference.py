"""Pictures from a base model and adapters: `python -m diffusekrona.inference --help`.

Adapters are merged into the base weights for good, so that a picture costs what it costs on the
base, unless `--no_merge` leaves them live. Each picture is saved with its recipe as soon as it is
made, and a labelled grid at the end. Launched by accelerate, the processes share the pictures.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError, exit_on_user_error, writing
from .sampling.inference_args import (
    ADAPTER_FILE,
    DTYPES,
    SCHEDULERS,
    build_parser,
    check_arguments,
    parse_adapter,
    read_prompts,
)

if TYPE_CHECKING:
    import torch

    from .adapters.file import Adapter

log = logging.getLogger(__name__)

_MOST_GRID_PIXELS = 1e8  # about what image viewers still open
# What a config written for another scheduler class may leave out, and latent models need.
_SCHEDULER_NEEDS = {"clip_sample": False, "skip_prk_steps": True}


def __getattr__(name: str) -> Any:
    # The library half, under this module's name too. It imports torch, which `--help` need not.
    if name in ("load_pipeline", "generate"):
        from .sampling import pipeline as sampling

        return getattr(sampling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- adapters and base ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """An adapter read from its file, and the weight that it is mixed in with."""

    path: Path
    weight: float
    adapter: Adapter

    @property
    def title(self) -> str:
        """For people: the run's name, and the weight if it is not 1."""
        own = self.path.absolute()
        name = own.parent.name if own.name == ADAPTER_FILE else own.stem
        return name if self.weight == 1 else f"{name} x {self.weight:g}"

    def recipe(self) -> dict[str, Any]:
        """What a picture's recipe tells of it; no more of the path than tells which it is."""
        from .common.pictures import content_key

        name = "/".join(self.path.absolute().parts[-2:])
        return {"file": name, "weight": self.weight, "sha256": content_key(self.path)}


def read_adapters(texts: Sequence[str]) -> list[Mixed]:
    """Every `--adapter`, read and checked. Raises UserError for one that is missing or damaged."""
    from .adapters.file import read_adapter

    pairs = [parse_adapter(text) for text in texts]
    return [Mixed(path, weight, read_adapter(path)) for path, weight in pairs]


def choose_base(name: str | None, adapters: Sequence[Mixed], revision: str | None = None) -> str:
    """The base asked for, or the one that the adapters were trained on.

    Raises:
        UserError: none is known, or several are; or the base is not of an adapter's family, which
            is told from the base's config alone, before its weights are fetched.
    """
    from .adapters.file import check_family
    from .bases.backbones import read_unet_config, resolve_base

    named = [mixed.adapter.metadata.get("base_model") for mixed in adapters]
    named = list(dict.fromkeys(filter(None, named)))
    if name is None and len(named) > 1:
        raise UserError(
            f"The adapters were trained on different bases, {' and '.join(named)}: choose one with "
            "--pretrained_model_name_or_path."
        )
    base = name or next(iter(named), None)
    if base is None:
        where = "the adapter does not name its base" if adapters else "there is no --adapter either"
        raise UserError(f"No base model: give --pretrained_model_name_or_path ({where}).")
    try:
        config = read_unet_config(resolve_base(base), revision=revision)
    except UserError as error:
        if name is None:
            hint = "it is what the adapter was trained on; --pretrained_model_name_or_path moves it"
            raise UserError(f"{error} ({hint})") from error
        raise
    for mixed in adapters:
        check_family(mixed.adapter, config, str(mixed.path))
    return base


def set_scheduler(pipeline: Any, name: str) -> None:
    """Put another sampler into `pipeline`, set up by the base's own scheduler config."""
    import diffusers

    kind, extra = SCHEDULERS[name]
    cls = getattr(diffusers, kind)
    known = inspect.signature(cls.__init__).parameters
    config = {**_SCHEDULER_NEEDS, **pipeline.scheduler.config, **extra}
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        log.warning("scheduler %s lacks this base's zero terminal SNR: expect grey pictures", name)
    pipeline.scheduler = cls.from_config({k: v for k, v in config.items() if k in known})


def apply_adapters(pipeline: Any, adapters: Sequence[Mixed], merge: bool = True) -> None:
    """Put adapters on a pipeline, each with its weight; by default merge them all for good.

    Raises:
        UserError: one does not fit the base.
    """
    from .adapters.file import components_of, put_adapter
    from .krona import merge_and_unload

    for number, mixed in enumerate(adapters):
        put_adapter(pipeline, mixed.adapter, f"adapter_{number}", mixed.weight, str(mixed.path))
    for part in components_of(pipeline).values():
        if merge and getattr(part, "peft_config", None):
            merge_and_unload(part)


def choose_device(name: str | None, default: torch.device) -> torch.device:
    """Raises UserError for a device that this machine does not have."""
    import torch

    try:
        device = torch.device(name) if name else default
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} cannot be used: {reason}") from error
    return device


def build(args: argparse.Namespace, base: str, adapters: Sequence[Mixed], state: Any) -> Any:
    """The pipeline and, if asked for, its refiner, ready to draw on this process's device."""
    import torch

    from .common.cpu_memory import keep_freed_memory
    from .sampling.pipeline import load_pipeline, load_refiner

    device = choose_device(args.device, state.device)
    keep_freed_memory(device)
    precision = args.mixed_precision or ("no" if device.type == "cpu" else "fp16")
    dtype = getattr(torch, DTYPES[precision])
    options = {"revision": args.revision, "variant": args.variant}
    pipeline = load_pipeline(base, dtype, "cpu", args.vae, **options)
    apply_adapters(pipeline, adapters, merge=not args.no_merge)
    if args.scheduler:
        set_scheduler(pipeline, args.scheduler)
    refiner = load_refiner(pipeline, args.refiner, dtype) if args.refiner else None
    for part in filter(None, (pipeline, refiner)):
        if args.low_vram and device.type == "cuda":
            part.enable_model_cpu_offload(device=device)
        else:
            part.to(device, silence_dtype_warnings=True)
    if args.low_vram:
        pipeline.vae.enable_tiling()
    return pipeline, refiner


# --- pictures ------------------------------------------------------------------------------------


def recipe_of(
    args: argparse.Namespace, base: str, adapters: Sequence[Mixed], pipeline: Any
) -> dict[str, Any]:
    """What all pictures of a run share of their recipe."""
    import diffusers
    import torch
    import transformers

    from . import __version__

    versions = {"diffusekrona": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return {
        "negative_prompt": args.negative_prompt,
        "steps": args.num_inference_steps,
        "guidance": args.guidance_scale,
        "scheduler": type(pipeline.scheduler).__name__,
        "base": base,
        "adapters": [mixed.recipe() for mixed in adapters],
        "merged": bool(adapters) and not args.no_merge,
        "vae": args.vae,
        "refiner": args.refiner,
        "refiner_start": args.refiner_start if args.refiner else None,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": versions,
    }


def slug(text: str, length: int = 40) -> str:
    """A piece of a file name that is legal on every system, from any text."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
    return "-".join(words)[:length].strip("-_") or "picture"


def first_number(folder: Path) -> int:
    """The number after the highest that a picture in `folder` bears."""
    matches = (re.match(r"(\d{4,9})_", path.name) for path in folder.glob("*.png"))
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def choose_prompts(args: argparse.Namespace, adapters: Sequence[Mixed]) -> list[str]:
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
        The paths of all pictures of the run, those of other processes too: prompt by prompt.
    """
    from .sampling.grids import save_png
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
    )
    for n, image in zip(mine, images, strict=True):
        row, seed = jobs[n]
        own = {"prompt": prompts[row], "seed": seed, "height": image.height, "width": image.width}
        save_png(image, paths[n], {**own, **recipe})
    state.wait_for_everyone()
    return paths


def save_grid(
    args: argparse.Namespace,
    prompts: Sequence[str],
    paths: Sequence[Path],
    base: str,
    adapters: Sequence[Mixed],
) -> Path:
    """`grid.png` of a run: a row a prompt, a column a seed. Replaces that of the run before."""
    from PIL import Image

    from .sampling.grids import labelled_grid, save_png

    images = []
    for path in paths:
        with Image.open(path) as image:
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
    from accelerate import PartialState

    from .bases.backbones import quiet_libraries

    quiet_libraries()
    state = PartialState(cpu=args.device == "cpu")
    level = logging.WARNING if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    try:
        adapters = read_adapters(args.adapter)
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
