"""How pictures are drawn, and the inference program's settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..bases.schedulers import SCHEDULERS
from ..bases.settings import ReadingSettings
from ..common.command_line import parse
from ..common.errors import UserError
from ..common.settings import COUNTS, SEEDS, SIDES, setting
from ..common.text_files import read_text

if TYPE_CHECKING:
    import torch

    from ..bases.base import DrawingDefaults

_BASE_HELP = (
    "Hub name, diffusers folder, .safetensors file of a whole model, or a bundled model: pocket, "
    "pocket-sdxl. By default the base that the adapter was trained on."
)

STEPS = 50  # denoising steps, if neither the user nor the base asks for another number
STEPS_HELP = (
    f"Denoising steps; by default {STEPS}, or fewer where the base asks for it: 25 on pocket, "
    "fewer still on distilled models."
)
GUIDANCE_HELP = (
    "Classifier-free guidance; by default what the base asks for: 7 for Stable Diffusion, 4 for "
    "FLUX.2-klein and Z-Image, 3 for pocket, none for distilled models."
)


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn."""

    num_inference_steps: int | None = setting(None, **COUNTS, help=STEPS_HELP)
    guidance_scale: float | None = setting(None, help=GUIDANCE_HELP)
    scheduler: str | None = setting(
        None,
        choices=tuple(SCHEDULERS),
        help="Sampler, of Stable Diffusion and SDXL only; by default the base's own.",
    )
    negative_prompt: str | None = setting(None, help="What the pictures must not show.")
    height: int | None = setting(
        None, metavar="PIXELS", multiple_of=8, **SIDES, help="Height; by default the base's own."
    )
    width: int | None = setting(
        None, metavar="PIXELS", multiple_of=8, **SIDES, help="Width; by default the base's own."
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None for the base's own."""
        return (self.height, self.width) if self.height and self.width else None

    def resolved(self, defaults: DrawingDefaults) -> DrawSettings:
        """The same, with the base's defaults for what is left out."""
        return replace(
            self,
            num_inference_steps=steps_or(self.num_inference_steps, defaults),
            guidance_scale=guidance_or(self.guidance_scale, defaults),
        )


def steps_or(steps: int | None, defaults: DrawingDefaults, usual: int = STEPS) -> int:
    """The denoising steps asked for, or else a program's usual number, and no more than the
    base asks for."""
    return steps or min(usual, defaults.steps)


def guidance_or(guidance: float | None, defaults: DrawingDefaults) -> float:
    """The guidance asked for, or else the base's."""
    return defaults.guidance if guidance is None else guidance


def precision_or(precision: str | None, defaults: DrawingDefaults, device: torch.device) -> str:
    """The precision asked for, or else "no" on the CPU and the base's on other devices."""
    return precision or ("no" if device.type == "cpu" else defaults.precision)


@dataclass(frozen=True)
class MachineSettings:
    """The machine."""

    batch_size: int = setting(
        1, **COUNTS, help="Draw this many pictures at once, which does not change them."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, help="Precision; by default the base's on a GPU, fp16 or bf16, otherwise no."
    )
    device: str | None = setting(
        None, help="Device, such as cuda, cuda:1, mps or cpu; by default the best available."
    )
    low_vram: bool = setting(
        False,
        help="Keep only the active part on the GPU (of FLUX.2-klein and Z-Image as with "
        "--group_offload), and decode large pictures in tiles.",
    )
    group_offload: bool = setting(
        False,
        help="Keep the denoiser, and large text encoders, in host memory; each block or layer is "
        "on the GPU only while it computes. The pictures stay the same.",
    )
    quantize_base: Literal["none", "fp8"] = setting(
        "none",
        ignore_case=True,
        help="Keep the denoiser's transformer blocks in fp8, half of bf16's memory; adapters stay "
        "unmerged. The pictures change slightly.",
    )


@dataclass(frozen=True)
class ModelSettings:
    """The base model and its adapters."""

    pretrained_model_name_or_path: str | None = setting(
        None, metavar="NAME_OR_PATH", aliases=("--base",), help=_BASE_HELP
    )
    adapter: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="PATH[:WEIGHT]",
        help="Adapter file, or the run's or PEFT's folder that holds it; repeat the flag to mix "
        "several. The weight is 1 by default.",
    )
    no_merge: bool = setting(False, help="Keep adapters unmerged.")
    blocks: tuple[str, ...] = setting(
        (),
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in blocks of the denoiser, such as down.1=0.5 mid=0.",
    )
    projections: tuple[str, ...] = setting(
        (),
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in attention's k, q, v, o, such as k=0.",
    )
    attention: tuple[str, ...] = setting(
        (),
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in self- and cross-attention, such as self=0.",
    )
    adapter_steps: str | None = setting(
        None,
        metavar="FROM-TO",
        help="Activate adapters only between these fractions of the denoising steps, such as "
        "0.0-0.4: the first steps determine shapes, the last add detail. Keeps adapters unmerged.",
    )
    vae: str | None = setting(
        None, metavar="NAME_OR_PATH", help="Use another VAE, such as one made for fp16."
    )
    refiner: str | None = setting(
        None, metavar="NAME_OR_PATH", help="Use a refiner for the last steps."
    )
    refiner_start: float = setting(
        0.8, above=0, below=1, help="Fraction of the steps after which the refiner takes over."
    )
    revision: str | None = setting(None, help="Use this revision of the base on the hub.")
    variant: str | None = setting(None, help="Use this variant of the base's files, such as fp16.")

    @property
    def merges(self) -> bool:
        """Whether adapters are merged for good: not if they are switched on and off on the way."""
        return not (self.no_merge or self.adapter_steps)


@dataclass(frozen=True)
class PicturesSettings:
    """The pictures."""

    prompt: tuple[str, ...] = setting(
        (),
        append=True,
        help="Draw this; repeat the flag for several. By default the adapter's instance prompt.",
    )
    prompt_file: Path | None = setting(
        None, metavar="FILE", help="Draw the prompts of a file, one per line; # begins a comment."
    )
    seeds: tuple[int, ...] = setting(
        (0,), **SEEDS, help="Draw a picture of each prompt for each seed."
    )
    output_dir: Path = setting(
        Path("outputs/inference"),
        metavar="FOLDER",
        help="Write the pictures here. Existing pictures are kept; numbering continues.",
    )


@dataclass(frozen=True)
class InferenceSettings:
    """All settings of the inference program, by group."""

    model: ModelSettings
    reading: ReadingSettings
    pictures: PicturesSettings
    drawing: DrawSettings
    machine: MachineSettings


def parse_settings(argv: Sequence[str] | None = None) -> InferenceSettings:
    """The inference program's settings. Raises UserError, naming the flag."""
    settings = parse(
        InferenceSettings,
        argv,
        prog="diffusekrona.inference",
        description="Draw pictures with Stable Diffusion or SDXL and Kronecker adapters.",
    )
    check_size(settings.drawing)
    model = settings.model
    changes = (model.blocks, model.projections, model.attention, model.adapter_steps)
    if any(changes) and not model.adapter:
        names = ("blocks", "projections", "attention", "adapter_steps")
        flag = next(name for name, value in zip(names, changes, strict=True) if value)
        raise UserError(f"--{flag} changes adapters: give --adapter too.")
    parse_steps(model.adapter_steps)
    return settings


def check_size(drawing: DrawSettings) -> None:
    """Raises UserError for a height without a width."""
    if (drawing.height is None) != (drawing.width is None):
        raise UserError("Give --height and --width together.")


def check_seeds(seeds: Sequence[int], flag: str = "--seeds") -> None:
    """Raises UserError for a seed that is given twice."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{flag} must be different numbers.")


def parse_steps(text: str | None) -> tuple[float, float] | None:
    """ "0.0-0.4" to (0.0, 0.4); None stays None.

    Raises:
        UserError: anything else, or a range that is empty or leaves 0 … 1.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", text.strip())
    if not match or not 0 <= float(match[1]) < float(match[2]) <= 1:
        raise UserError(
            f"--adapter_steps {text}: give two numbers from 0 (noise) to 1 (picture), the smaller "
            "first, such as 0.0-0.4."
        )
    return float(match[1]), float(match[2])


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line, without blank lines and those that begin with #.

    Raises:
        UserError: it cannot be read, is not UTF-8, or holds none.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one per line.")
    return prompts
