"""Measures a base by the reader, on prompts and seeds that were fixed beforehand.

    python -m tools.pocket.measure [--model FOLDER] [--reader FOLDER] [--output FILE.json]

Obedience: share of pictures in which class, place, colour, pattern and accessory are read as the
prompt says. Coverage: how far apart the things are that the base draws for a bare class, over how
far apart those of rendered test pictures are, both as read. Loss: that of training, on test
pictures, which show things that no training picture shows; with --work_dir alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusekrona.evaluation.reader import Reader, Reading, load_reader

from .captions import PATTERN_WORDS, article
from .data import load_pictures, test_picture
from .records import NOUNS, PLACES
from .samples import Samples
from .sheets import draw_prompts, labelled_grid
from .unet import new_schedule, v_loss
from .unet_sdxl import encode_ids

MODELS = Path(__file__).parents[2] / "diffusekrona" / "pocket" / "models"
COVERAGE_NOUNS, COVERAGE_COUNT = ("dog", "teapot", "car", "duck"), 12
LOSS_BATCHES, LOSS_BATCH = 40, 50
ASKED_COLOURS = ("red", "blue", "green", "yellow", "purple", "white")


def plain_prompts(places_each: int = 4) -> list[tuple[str, dict[str, str]]]:
    """Prompts of class and place, with what should be read: every class in four places."""
    out, places = [], list(PLACES)
    for i, noun in enumerate(NOUNS):
        for j in range(places_each):
            place = places[(i + j * 5) % len(places)]
            out.append((f"{article(noun)} {PLACES[place]}", {"class": noun, "place": place}))
    return out


def attribute_prompts() -> list[tuple[str, dict[str, str]]]:
    """Prompts that name a colour, and in two of three a pattern or an accessory."""
    out, places = [], list(PLACES)
    worn = ("hat", "scarf", "glasses")
    for i, noun in enumerate(NOUNS):
        colour, place = ASKED_COLOURS[i % 6], places[(7 * i + 3) % len(places)]
        asked = {"class": noun, "place": place, "main_colour": colour}
        words, tail = f"{colour} {noun}", ""
        if i % 3 == 0:
            asked["pattern"] = "stripes" if i % 2 else "spots"
            words = f"{PATTERN_WORDS[asked['pattern']]} {words}"
        elif i % 3 == 1 and i < 7:
            asked["accessory"] = worn[i // 3]
            tail = " with glasses" if i // 3 == 2 else f" with a {worn[i // 3]}"
        out.append((f"{article(words)}{tail} {PLACES[place]}", asked))
    return out


def draw_all(pipeline, prompts: list[str], seed: int, batch: int = 18) -> list[Image.Image]:
    """A picture for each prompt; prompt i from seed `seed` + i."""
    out: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        out += draw_prompts(pipeline, tuple(prompts[start : start + batch]), seed + start)
    return out


def obedience(readings: list[Reading], asked: list[dict[str, str]]) -> dict[str, float]:
    """Share of pictures in which each label is read as asked, where it was asked for."""
    right: dict[str, list[bool]] = {}
    for reading, wanted in zip(readings, asked, strict=True):
        for label, value in wanted.items():
            right.setdefault(label, []).append(reading.best(label) == value)
    return {label: float(np.mean(values)) for label, values in right.items()}


def spread(readings: list[Reading]) -> dict[str, float]:
    """Mean distance between two things as read: of main colours (RGB), of proportions."""
    rgb = np.array([r.main_rgb for r in readings])
    shape = np.array([r.proportions for r in readings])
    pairs = np.triu_indices(len(readings), 1)
    return {
        "main_rgb": float(np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[pairs].mean()),
        "proportions": float(np.linalg.norm(shape[:, None] - shape[None], axis=-1)[pairs].mean()),
    }


def coverage(pipeline, reader: Reader, work_dir: Path | None) -> dict[str, float]:
    """Spread of what the base draws for bare classes over that of test pictures; 1 is equal."""
    images = load_pictures(work_dir, "test") if work_dir else None
    ratios: dict[str, list[float]] = {}
    for noun in COVERAGE_NOUNS:
        drawn = draw_all(pipeline, [f"{article(noun)} on the grass"] * COVERAGE_COUNT, 5000)
        own = spread(reader.read(drawn))
        if images is None:
            ratios.setdefault("drawn main_rgb", []).append(own["main_rgb"])
            continue
        rows = [r for r in range(0, len(images), 2) if test_picture(r).identity.noun == noun]
        real = spread(reader.read([Image.fromarray(images[r]) for r in rows]))
        for name, value in own.items():
            ratios.setdefault(name, []).append(value / real[name])
    return {name: float(np.mean(values)) for name, values in ratios.items()}


@torch.no_grad()
def held_out_loss(pipeline, work_dir: Path, batches: int = LOSS_BATCHES) -> float:
    """The loss that a UNet is trained with, on test pictures; the same draws for every base."""
    samples, schedule, losses = Samples(work_dir, pipeline.vae, name="test"), new_schedule(), []
    torch.manual_seed(0)
    for _ in range(batches):
        batch, added = samples.draw(LOSS_BATCH), {}
        if hasattr(pipeline, "text_encoder_2"):
            states, pooled = encode_ids(pipeline.text_encoder_2, batch.ids, batch.said)
            given = {"text_embeds": pooled, "time_ids": batch.time_ids}
            added = {"added_cond_kwargs": given}
        else:
            states = pipeline.text_encoder(batch.ids).last_hidden_state
        losses.append(v_loss(pipeline.unet, batch, states, schedule, **added).item())
    return float(np.mean(losses))


def measure(model: Path, reader: Reader, work_dir: Path | None, sheet: Path | None) -> dict:
    """All numbers of one base."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    out = {}
    for name, prompts in (("plain", plain_prompts()), ("attributes", attribute_prompts())):
        texts, asked = [p for p, _ in prompts], [a for _, a in prompts]
        drawn = draw_all(pipeline, texts, 1000)
        out[name] = {"pictures": len(drawn), **obedience(reader.read(drawn), asked)}
        if sheet is not None:
            labelled_grid(drawn, texts, 12).save(sheet.with_stem(f"{sheet.stem}_{name}"))
    out["coverage"] = coverage(pipeline, reader, work_dir)
    if work_dir is not None:
        out["held_out_loss"] = held_out_loss(pipeline, work_dir)
    return out


def main(argv: list[str] | None = None) -> None:
    """Parses, measures, prints, saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODELS / "pocket")
    parser.add_argument("--reader", type=Path, default=MODELS / "pocket-reader")
    parser.add_argument("--work_dir", type=Path, help="of the build: for coverage against the data")
    parser.add_argument("--sheet", type=Path, help="PNG that the pictures are drawn to")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    numbers = measure(args.model, load_reader(args.reader), args.work_dir, args.sheet)
    text = json.dumps(numbers, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
