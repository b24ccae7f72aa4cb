"""Judges fine-tuned subjects by the reader: identity, place, drift of the plain class word.

    python -m tools.pocket.judge outputs/dog/run outputs/cat/run ... [--output FILE.json]

Each run is of a subject of `data/`, on its own base. Drawn are "a sks dog ..." and "a dog ..." in
the eight places of `--prompts pocket`, none of which is in a training picture, with six seeds.

A picture counts as the subject if it is read as its class and its identity score is at least the
tolerance: what 95 % of other things of the class, rendered in the same places and poses as the
subject's held-out photos, stay below. How many of the held-out photos themselves pass is told
beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from diffusekrona.adapters.file import read_adapter
from diffusekrona.adapters.mixing import WeightedAdapter, apply_adapters
from diffusekrona.adapters.norms import norms_in
from diffusekrona.common.pictures import load_picture
from diffusekrona.data.folder import find_pictures
from diffusekrona.evaluation.prompts import POCKET
from diffusekrona.evaluation.reader import Reader, Reading, average, likeness, load_reader

from .measure import MODELS, draw_all, spread
from .records import HELD_OUT_FROM, draw_identity
from .render import render
from .subjects import HELD_OUT_PLACES, HELD_OUT_POSES, pictures_of

OTHERS, SEEDS = 40, range(6)


def photos_of(folder: Path) -> list[Image.Image]:
    """The pictures of a folder, in order of name."""
    return [load_picture(path) for path in find_pictures(folder)[0]]


def tolerance(reader: Reader, noun: str, photos: Reading) -> float:
    """The identity score that 95 % of pictures of other things of the class stay below."""
    pictures = []
    for number in range(OTHERS):
        identity = draw_identity(noun, HELD_OUT_FROM + 20_000_000 + number)
        made = pictures_of(identity, HELD_OUT_PLACES, HELD_OUT_POSES)
        pictures.append(Image.fromarray(render(made[number % len(made)], 128)))
    return float(np.quantile([likeness(one, photos) for one in reader.read(pictures)], 0.95))


def judge(run: Path, data_dir: Path, reader: Reader) -> dict[str, Any]:
    """All numbers of one run."""
    path = run / "adapter.safetensors"
    adapter = read_adapter(path)
    asked = json.loads((run / "run.json").read_text())["settings"]
    noun = asked["instance_prompt"].split()[-1]
    base = Path(asked["pretrained_model_name_or_path"]).name
    photos = average(reader.read(photos_of(data_dir / noun / "input")))
    own = [likeness(one, photos) for one in reader.read(photos_of(data_dir / noun / "heldout"))]
    least = tolerance(reader, noun, photos)
    pipeline = DiffusionPipeline.from_pretrained(MODELS / base)
    before = _read(reader, pipeline, noun)
    apply_adapters(pipeline, [WeightedAdapter(path, 1.0, adapter)])
    plain, made = _read(reader, pipeline, noun), _read(reader, pipeline, f"sks {noun}")
    scores = np.array([likeness(one, photos) for one in made]).reshape(len(POCKET), len(SEEDS))
    passed = np.array([_is_it(one, photos, noun, least) for one in made]).reshape(scores.shape)
    places = [reader.place_in(prompt.text(noun)) for prompt in POCKET for _ in SEEDS]
    norms = norms_in(adapter.metadata) or {}
    return {
        "subject": noun,
        "base": base,
        "relative_norm": norms.get("median"),
        "tolerance": least,
        "heldout_photos_within": float(np.mean([value >= least for value in own])),
        "places_with_the_subject": int((passed.mean(1) >= 0.5).sum()),
        "pictures_within": float(passed.mean()),
        "identity": float(scores.mean()),
        "heldout_photos_identity": float(np.mean(own)),
        "place": float(np.mean([r.best("place") == p for r, p in zip(made, places, strict=True)])),
        "class": float(np.mean([r.best("class") == noun for r in made])),
        "plain_identity": [_mean(before, photos), _mean(plain, photos)],
        "plain_spread": [spread(before)["main_rgb"], spread(plain)["main_rgb"]],
    }


def _read(reader: Reader, pipeline: Any, name: str) -> list[Reading]:
    """Readings of the prompts for `name`: each place with each seed, the same for every name."""
    texts = [prompt.text(name) for prompt in POCKET for _ in SEEDS]
    return reader.read(draw_all(pipeline, texts, 0))


def _is_it(one: Reading, photos: Reading, noun: str, least: float) -> bool:
    return one.best("class") == noun and likeness(one, photos) >= least


def _mean(readings: list[Reading], photos: Reading) -> float:
    return float(np.mean([likeness(one, photos) for one in readings]))


def main(argv: list[str] | None = None) -> None:
    """Parses, judges, prints, saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data_dir", type=Path, default=Path(__file__).parents[2] / "data")
    parser.add_argument("--reader", type=Path, default=MODELS / "pocket-reader")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    reader = load_reader(args.reader)
    found = []
    for run in args.runs:
        found.append(judge(run, args.data_dir, reader))
        print(json.dumps(found[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
