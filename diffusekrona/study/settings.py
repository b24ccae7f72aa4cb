"""The study program's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bases.schedulers import SCHEDULERS
from ..common.command_line import parse
from ..common.settings import COUNTS, SEEDS, SIDES, setting
from ..sampling.settings import GUIDANCE_HELP, check_seeds


@dataclass(frozen=True)
class ChosenSettings:
    """Which study, and its changes."""

    study: str | None = setting(
        None, positional=True, metavar="NAME|FILE", help="A built-in study, or a YAML file of one."
    )
    list_studies: bool = setting(False, flag="list", help="List the built-in studies.")
    print_study: bool = setting(False, flag="print", help="Print the study as YAML, to edit.")
    base: str = setting(
        "pocket",
        metavar="NAME_OR_PATH",
        aliases=("--pretrained_model_name_or_path",),
        help="Base model.",
    )
    subject: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="FOLDER[:WORD]",
        help="Folder of a subject's pictures, and the word for what they show; repeat the flag for "
        "several. By default the six in data/.",
    )
    identifier: str = setting("sks", help="The subjects' name in prompts.")
    seeds: tuple[int, ...] = setting((), **SEEDS, help="Training seeds, one run for each.")
    set: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="FLAG=VALUE",
        help="Set this training flag for all runs; repeat the flag for several.",
    )
    axis: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="NAME=V,V",
        help="Use other values on an axis; repeat the flag for several.",
    )
    checkpoints: tuple[int, ...] = setting(
        (), minimum=1, metavar="STEP", help="Score each run after these numbers of steps."
    )


@dataclass(frozen=True)
class ScoredSettings:
    """How runs are drawn and scored."""

    prompts: str = setting(
        "auto",
        metavar="LIST|FILE",
        help="Prompts: object, live, pocket, pocket-colours, or a file of templates.",
    )
    image_seeds: tuple[int, ...] = setting(
        (0, 1), **SEEDS, help="Draw each prompt with these seeds."
    )
    num_inference_steps: int | None = setting(
        None, **COUNTS, help="Denoising steps; by default 25, or fewer on distilled models."
    )
    guidance_scale: float | None = setting(None, help=GUIDANCE_HELP)
    scheduler: str | None = setting(
        None,
        choices=tuple(SCHEDULERS),
        help="Sampler, of Stable Diffusion and SDXL only; by default the base's own.",
    )
    image_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, help="Precision; by default the base's on a GPU, fp16 or bf16, otherwise no."
    )
    image_resolution: int | None = setting(
        None,
        metavar="PIXELS",
        **SIDES,
        multiple_of=8,
        help="Sides of the pictures; by default the base's own.",
    )
    image_batch_size: int = setting(4, **COUNTS, help="Draw this many pictures at once.")
    low_vram: bool = setting(
        False,
        help="Keep only the active part on the GPU while drawing; for training, use --set "
        "low_vram=true.",
    )
    clip: str = setting(
        "auto", metavar="NAME_OR_PATH", help="CLIP model, as for diffusekrona evaluate."
    )
    clip_backend: Literal["transformers", "openai"] = setting(
        "transformers", help="Library that runs it."
    )
    dino: str = setting(
        "auto", metavar="NAME_OR_PATH", help="DINO model, as for diffusekrona evaluate."
    )


@dataclass(frozen=True)
class PlaceSettings:
    """Where runs go, and who runs them."""

    output_dir: Path | None = setting(
        None, metavar="FOLDER", help="Write results here; by default outputs/studies/<name>."
    )
    cells_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        help="Keep runs here, by default in OUTPUT_DIR/cells; studies that share it share their "
        "runs.",
    )
    engine: Literal["local", "ray"] = setting(
        "local", help="Run the cells on this machine, or on a Ray cluster."
    )
    workers: int | None = setting(
        None, **COUNTS, help="local: cells at once; by default one, or one per GPU."
    )
    ray_address: str | None = setting(
        None, help="ray: the cluster's address; by default this machine."
    )
    gpus_per_cell: float | None = setting(
        None, minimum=0, help="ray: GPUs per cell; by default 1 if there is a GPU, otherwise 0."
    )
    cpus_per_cell: float = setting(1.0, minimum=0, help="ray: CPU cores per cell.")
    device: Literal["cpu", "cuda"] | None = setting(
        None, help="Train and draw on this; by default the GPU if there is one."
    )
    report_only: bool = setting(False, help="Run nothing; report existing results.")
    results: Path | None = setting(
        None,
        metavar="FILE",
        help="Run nothing; print the tables of a study's results.json or results.json.gz.",
    )


@dataclass(frozen=True)
class StudySettings:
    """All settings of the study program, by group."""

    chosen: ChosenSettings
    scored: ScoredSettings
    place: PlaceSettings


def parse_settings(argv: Sequence[str] | None = None) -> StudySettings:
    """The study program's settings. Raises UserError, naming the flag."""
    settings = parse(
        StudySettings,
        argv,
        prog="diffusekrona.study",
        description="Run a grid of trainings and score it in one page. Finished runs are kept.",
    )
    check_seeds(settings.scored.image_seeds, "--image_seeds")
    return settings
