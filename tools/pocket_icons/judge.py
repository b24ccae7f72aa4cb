"""How well the bundled scorers tell a subject from its class; prints the table of docs/pocket.md.

    python -m tools.pocket_icons.judge [--scorers pocket-clip pocket-dino] [--work_dir DIR]

The sheets and sample subjects are in a style that no scorer was trained on. Any other image
encoder, by name or folder, can be put beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.evaluation.encoders import (
    BUNDLED_CLIP,
    BUNDLED_DINO,
    Encoder,
    load_clip_encoder,
    load_dino_encoder,
)

from . import MODELS

ROOT = Path(__file__).parents[2]
SUBJECTS = ("dog", "cat", "teapot")


def read_sheet(path: Path) -> tuple[list[Image.Image], list]:
    """The 64 x 64 tiles of a sheet of `subjects.write_sheet`, and their labels."""
    meta = json.loads(path.with_suffix(".json").read_text())
    columns, labels = meta["columns"], meta["labels"]
    sheet = Image.open(path).convert("RGB")
    corners = [(i % columns * 64, i // columns * 64) for i in range(len(labels))]
    return [sheet.crop((x, y, x + 64, y + 64)) for x, y in corners], labels


def individuals(vectors: torch.Tensor, labels: Sequence[tuple[str, int]]) -> dict[str, float]:
    """How far individuals are kept apart, from unit-length features (n, d).

    Args:
        labels: class and number of each picture's individual.

    Returns:
        Mean cosine within an individual, to others of its class, to other classes; and the share of
        triples (picture, another of the same individual, one of a rival of its class) in which the
        individual's own picture is the nearer.
    """
    cosines = (vectors @ vectors.T).numpy()
    nouns = np.array([noun for noun, _ in labels])
    ids = np.array([f"{noun} {number}" for noun, number in labels])
    same = (ids[:, None] == ids) & ~np.eye(len(ids), dtype=bool)
    kin = nouns[:, None] == nouns
    rivals = kin & (ids[:, None] != ids)
    wins = [(row[own][:, None] > row[other][None]).ravel() for row, own, other in
            zip(cosines, same, rivals, strict=True)]  # fmt: skip
    return {
        "within an individual": float(cosines[same].mean()),
        "to others of its class": float(cosines[rivals].mean()),
        "to other classes": float(cosines[~kin].mean()),
        "own picture nearer (share of triples)": float(np.concatenate(wins).mean()),
    }


def photos_of(data_dir: Path, subject: str) -> list[Image.Image]:
    """The pictures of a sample subject."""
    files = sorted((data_dir / subject / "input").glob("*.png"))
    return [Image.open(file).convert("RGB") for file in files]


def turn_hue(picture: Image.Image, degrees: int) -> Image.Image:
    """The picture with every hue turned."""
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(h + round(degrees / 360 * 256)) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def mean_pairs(vectors: torch.Tensor) -> float:
    """Mean cosine of all pairs among unit-length (n, d), none with itself."""
    return (vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool)].mean().item()


def draw_classes(count: int) -> dict[str, list[Image.Image]]:
    """`count` pictures of each sample subject's class by the untouched base pocket, seeds 0 … ."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "pocket")
    pipeline.set_progress_bar_config(disable=True)
    return {
        noun: pipeline(
            [f"a {noun}"] * count,
            num_inference_steps=25,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        ).images
        for noun in SUBJECTS
    }


def draw_held_back(work_dir: Path, icons: int = 128) -> tuple[list[Image.Image], list]:
    """Two views of each of two colourings of icons that pocket-dino was not trained on.

    Returns:
        The pictures, 64 x 64, and (icon, colouring) of each.
    """
    from .dino import draw_backgrounds, draw_batch, load_sprites

    torch.manual_seed(0)
    views = draw_batch(load_sprites(work_dir, held_out=True), draw_backgrounds(400, 1), icons)
    arrays = ((views + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    labels = [(str(i // 4), i // 2 % 2) for i in range(len(arrays))]
    return [Image.fromarray(array) for array in arrays], labels


def judge(
    encoder: Encoder, sheets_dir: Path, data_dir: Path, drawn: dict[str, list[Image.Image]]
) -> dict[str, float]:
    """Every line of the table for one encoder: what was measured to its value."""
    tiles, labels = read_sheet(sheets_dir / "individuals.png")
    rows = individuals(encoder.images(tiles), labels)
    pictures = {name: photos_of(data_dir, name) for name in SUBJECTS}
    photos = {name: encoder.images(images) for name, images in pictures.items()}
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(8)]
    for name, own in photos.items():
        rows[f"{name}: its photos to each other"] = mean_pairs(own)
        for degrees in (30, 60):
            turned = encoder.images([turn_hue(image, degrees) for image in pictures[name]])
            rows[f"{name}: to them with the hue turned {degrees}°"] = (own @ turned.T).mean().item()
        others = torch.cat([vectors for other, vectors in photos.items() if other != name])
        rows[f"{name}: to the other subjects' photos"] = (own @ others.T).mean().item()
        if name in drawn:
            near = encoder.images(drawn[name]) @ own.T
            rows[f"{name}: to the base's {name}s"] = near.mean().item()
        rows[f"{name}: to noise"] = (own @ encoder.images(noise).T).mean().item()
    return rows


def load_scorer(name: str) -> Encoder:
    """By name or folder: a CLIP if the name says so, else any image encoder.

    Raises:
        UserError: it cannot be had.
    """
    return load_clip_encoder(name) if "clip" in Path(name).name.lower() else load_dino_encoder(name)


def main(argv: list[str] | None = None) -> None:
    """Parses, judges, prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scorers", nargs="+", default=[BUNDLED_CLIP, BUNDLED_DINO])
    parser.add_argument("--drawn", type=int, default=8, help="pictures of a class; 0: none")
    parser.add_argument("--sheets_dir", type=Path, default=ROOT / "tests" / "pocket" / "sheets")
    parser.add_argument("--work_dir", type=Path, help="of the build: icons held back, too")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data")
    args = parser.parse_args(argv)
    drawn = draw_classes(args.drawn) if args.drawn else {}
    try:
        scorers = [load_scorer(name) for name in args.scorers]
    except UserError as error:
        parser.error(str(error))
    tables = [judge(scorer, args.sheets_dir, args.data_dir, drawn) for scorer in scorers]
    if args.work_dir:
        tiles, labels = draw_held_back(args.work_dir)
        for scorer, table in zip(scorers, tables, strict=True):
            found = individuals(scorer.images(tiles), labels)
            table |= {f"icons held back: {what}": value for what, value in found.items()}
    print("| mean cosine | " + " | ".join(args.scorers) + " |")
    print("|---|" + "---|" * len(tables))
    for line in tables[0]:
        print(f"| {line} | " + " | ".join(f"{table[line]:.3f}" for table in tables) + " |")


if __name__ == "__main__":
    main()
