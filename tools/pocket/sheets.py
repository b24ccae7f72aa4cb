"""Sheets of pictures with words below, and the fixed prompts that every base draws."""

from __future__ import annotations

import textwrap

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from .captions import article
from .records import NOUNS, PLACES

#: One prompt for each class, each place once: fixed, nothing picked.
FIXED_PROMPTS = (
    *(f"{article(noun)} {words}" for noun, words in zip(NOUNS, PLACES.values(), strict=True)),
    "a spotted red dog with a blue collar in the snow",
    "a green teapot with a yellow bow on the beach",
    "a black and white striped cat in the kitchen",
    "a tall blue robot with a red hat facing left in the city",
    "a purple car from behind in the desert",
    "a pink backpack with a face on the grass",
)
CELL, LABEL = 128, 30


def draw_prompts(
    pipeline: DiffusionPipeline,
    prompts: tuple[str, ...] = FIXED_PROMPTS,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
) -> list[Image.Image]:
    """One picture for each prompt, prompt i from seed `seed` + i."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    with torch.no_grad():
        return pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        ).images


def labelled_grid(images: list[Image.Image], labels, columns: int = 6) -> Image.Image:
    """The pictures, each with its label below, row by row."""
    rows = -(-len(images) // columns)
    size = (columns * (CELL + 4) + 4, rows * (CELL + LABEL + 4) + 4)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = 4 + i % columns * (CELL + 4), 4 + i // columns * (CELL + LABEL + 4)
        sheet.paste(image.resize((CELL, CELL), Image.BICUBIC), (x, y))
        text, middle = textwrap.fill(label, 25), (x + CELL / 2, y + CELL + LABEL / 2)
        draw.multiline_text(middle, text, "black", font, anchor="mm", align="center", spacing=1)
    return sheet
