"""The inference program's flags, and what they mean before anything is loaded."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from ..bases.precision import MIXED
from ..common.errors import UserError
from .schedulers import SCHEDULERS


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.inference",
        description="Pictures from Stable Diffusion or SDXL with Kronecker adapters.",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--pretrained_model_name_or_path",
        metavar="NAME_OR_PATH",
        help="Hub name, diffusers folder, or a bundled model: pocket, pocket-sdxl. "
        "Default: the base that the adapter was trained on.",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="Adapter file, or the run folder that holds it; repeat to mix. Weight 1 by default.",
    )
    add("--no_merge", action="store_true", help="Leave adapters live instead of merging them.")
    add_group_flags(add)
    add(
        "--adapter_steps",
        metavar="FROM-TO",
        help="Part of the denoising steps in which adapters take part, such as 0.0-0.4: the first "
        "lay out shapes, the last add detail. Leaves adapters live.",
    )
    add("--vae", metavar="NAME_OR_PATH", help="Another VAE, such as one made for fp16.")
    add("--refiner", metavar="NAME_OR_PATH", help="A refiner that takes the last steps.")
    add("--refiner_start", type=float, default=0.8, help="Part of the way at which it does (0.8).")
    add("--revision", help="Revision of the base on the hub.")
    add("--variant", help="Variant of the base's files, such as fp16.")
    add = parser.add_argument_group("pictures").add_argument
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="Repeat for several. Default: the adapter's instance prompt.",
    )
    add("--prompt_file", type=Path, metavar="FILE", help="A prompt a line; # begins a comment.")
    add("--negative_prompt", metavar="TEXT", help="What the pictures should not be.")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="A picture of each prompt for each seed (0).",
    )
    add("--num_inference_steps", type=int, default=50, help="Denoising steps (50).")
    add("--guidance_scale", type=float, default=7.0, help="Classifier-free guidance (7).")
    add("--scheduler", choices=tuple(SCHEDULERS), help="Default: the base's own.")
    add("--height", type=int, help="Pixels; default: the base's own.")
    add("--width", type=int, help="Pixels; default: the base's own.")
    add(
        "--output_dir",
        type=Path,
        default=Path("outputs/inference"),
        help="Pictures already there are kept: numbers go on (outputs/inference).",
    )
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=int, default=1, help="Pictures at once; does not change them (1).")
    add("--mixed_precision", choices=MIXED, help="Default: fp16 on a GPU, else no.")
    add("--device", help="Such as cuda, cuda:1, mps, cpu. Default: the best there is.")
    add(
        "--low_vram",
        action="store_true",
        help="Keep on the GPU only the part at work, and decode large pictures in tiles.",
    )
    return parser


def add_group_flags(add: Any) -> None:
    """The weights of groups of adapted layers: `adapters.groups.parse_groups` reads them."""
    add(
        "--blocks",
        nargs="+",
        default=[],
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in blocks of the denoiser, such as down.1=0.5 mid=0.",
    )
    add(
        "--projections",
        nargs="+",
        default=[],
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in attention's k, q, v, o, such as k=0.",
    )
    add(
        "--attention",
        nargs="+",
        default=[],
        metavar="NAME=WEIGHT",
        help="Weights of the adapters in self- and cross-attention, such as self=0.",
    )


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


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for a value out of range, naming the flag."""
    check_drawing(args)
    flags = ("blocks", "projections", "attention", "adapter_steps")
    if given := [flag for flag in flags if getattr(args, flag) and not args.adapter]:
        raise UserError(f"--{given[0]} changes adapters: give --adapter too.")
    parse_steps(args.adapter_steps)
    if args.refiner and not 0 < args.refiner_start < 1:
        raise UserError(f"--refiner_start must lie between 0 and 1, not {args.refiner_start}.")


def check_drawing(args: argparse.Namespace) -> None:
    """The same for the flags that every program has that draws pictures."""
    for flag in ("num_inference_steps", "batch_size", "height", "width"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be at least 1, not {value}.")
    for flag in ("height", "width"):
        if (getattr(args, flag) or 8) % 8:
            raise UserError(f"--{flag} must be a multiple of 8, not {getattr(args, flag)}.")
    if (args.height is None) != (args.width is None):
        raise UserError("Give --height and --width together.")
    if bad := [seed for seed in args.seeds if not 0 <= seed < 2**63]:
        raise UserError(f"--seeds must be whole numbers from 0 on, not {bad[0]}.")
    if not math.isfinite(args.guidance_scale):
        raise UserError(f"--guidance_scale must be a number, not {args.guidance_scale}.")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines and those that begin with # are none.

    Raises:
        UserError: it cannot be read, is not UTF-8, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"Cannot read the prompt file {path}: {error.strerror}.") from error
    lines = [line.strip() for line in text.split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line.")
    return prompts
