"""Draws the 24 fixed prompts with one seed as a labelled picture: nothing picked, nothing redrawn.

python -m tools.pocket_icons.grid [--model DIR] [--output FILE]
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from . import MODELS
from .concepts import FIXED_PROMPTS

CELL, COLUMNS, LABEL = 112, 6, 28


def draw_prompts(
    pipeline: DiffusionPipeline,
    prompts: tuple[str, ...] = FIXED_PROMPTS,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 5.0,
) -> list[Image.Image]:
    """One 64 x 64 picture for each prompt, each from the same `seed`."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    with torch.no_grad():
        return pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            height=64,
            width=64,
        ).images


def labelled_grid(
    images: list[Image.Image], labels: tuple[str, ...], columns: int = COLUMNS
) -> Image.Image:
    """The pictures enlarged to 112 px, each with its label below, row by row."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 4) + 4, rows * (CELL + LABEL + 4) + 4), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = 4 + i % columns * (CELL + 4), 4 + i // columns * (CELL + LABEL + 4)
        sheet.paste(image.resize((CELL, CELL), Image.BICUBIC), (x, y))
        text, middle = textwrap.fill(label, 22), (x + CELL / 2, y + CELL + LABEL / 2)
        draw.multiline_text(middle, text, "black", font, anchor="mm", align="center", spacing=1)
    return sheet


def main() -> None:
    """Parses the command line, draws, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODELS / "pocket", type=Path, help="pipeline folder")
    parser.add_argument("--output", default="docs/images/pocket_grid.png", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--steps", default=25, type=int)
    parser.add_argument("--guidance", default=5.0, type=float)
    args = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(args.model)
    images = draw_prompts(pipeline, FIXED_PROMPTS, args.seed, args.steps, args.guidance)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(images, FIXED_PROMPTS).save(args.output, optimize=True)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
