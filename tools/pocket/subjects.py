"""Draws the sample subjects of `data/`: six held-out things, each in ten pictures.

    python -m tools.pocket.subjects [--data_dir data] [--masks]
    python -m tools.pocket.subjects --others DIR [--masks]

`--others` draws twelve other things into DIR, to choose settings on; `data/` stays as it is.
`--masks` adds to each picture to train on its exact mask, for `--masked_loss`.

`data/<subject>/input/` has five pictures to train on with their captions, `heldout/` five others in
other places and poses, for scoring. `labels.json` beside them holds what is exactly true of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from diffusekrona.data.masks import MASK_ENDINGS

from .records import HELD_OUT_FROM, PLACES, Identity, Picture, Pose, Setting, draw_identity
from .render import coverage, render

FIRST = HELD_OUT_FROM + 10_000_000  # no test picture has these seeds either
#: Subject, which is also its class word -> seed.
SUBJECTS = {
    "dog": FIRST + 4,
    "cat": FIRST + 9,
    "teapot": FIRST + 11,
    "backpack": FIRST + 7,
    "duck": FIRST + 7,
    "car": FIRST + 5,
}
#: Other things, none of them a subject: settings are chosen on them.
OTHERS = {
    "rabbit": FIRST + 100,
    "bear": FIRST + 101,
    "robot": FIRST + 102,
    "mug": FIRST + 103,
    "boot": FIRST + 104,
    "bird": FIRST + 105,
    "clock": FIRST + 106,
    "dog": FIRST + 107,
    "cat": FIRST + 108,
    "teapot": FIRST + 109,
    "duck": FIRST + 110,
    "car": FIRST + 111,
}
INPUT_PLACES = ("grass", "floor", "white", "brick", "kitchen")
HELD_OUT_PLACES = ("forest", "beach", "snow", "city", "sunset")
#: Yaw in degrees, pitch, size and shifts of each of the five pictures.
INPUT_POSES = (
    (-40, 0.14, 1.21, 0.05, 0.0),
    (55, 0.2, 1.15, -0.1, 0.03),
    (10, 0.1, 1.26, 0.0, 0.0),
    (-95, 0.16, 1.09, 0.12, 0.02),
    (120, 0.12, 1.15, -0.05, 0.05),
)
HELD_OUT_POSES = (
    (30, 0.16, 1.15, -0.1, 0.02),
    (-70, 0.1, 1.26, 0.1, 0.0),
    (80, 0.18, 1.09, 0.0, 0.04),
    (-15, 0.12, 1.21, -0.05, 0.0),
    (-125, 0.2, 1.15, 0.08, 0.02),
)
SIZE = 256


def pictures_of(identity: Identity, places: tuple[str, ...], poses) -> list[Picture]:
    """One picture for each place and pose; the same place looks the same for every subject."""
    out = []
    for number, (place, (yaw, pitch, size, x, y)) in enumerate(zip(places, poses, strict=True)):
        pose = Pose(math.radians(yaw), pitch, size, x, y)
        out.append(Picture(identity, pose, Setting(place, HELD_OUT_FROM + number)))
    return out


def write_pictures(pictures: list[Picture], folder: Path, masks: bool) -> list[dict]:
    """Writes `00.png`, `00.txt` ("a sks dog on the grass"), with `masks` `00.mask.png`, and so on;
    returns what is true."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for number, picture in enumerate(pictures):
        image = Image.fromarray(render(picture, SIZE))
        image.save(folder / f"{number:02d}.png", optimize=True)
        if masks:
            mask = Image.fromarray(coverage(picture, SIZE))
            mask.save(folder / f"{number:02d}{MASK_ENDINGS[0]}")
        place = PLACES[picture.setting.place]
        (folder / f"{number:02d}.txt").write_text(f"a sks {picture.identity.noun} {place}\n")
        yaw = round(math.degrees(picture.pose.yaw))
        labels.append({"place": picture.setting.place, "yaw_degrees": yaw})
    return labels


def write_subjects(data_dir: Path, subjects: Mapping[str, int], masks: bool) -> None:
    """Writes all subjects' pictures, in place of those that are there.

    Args:
        data_dir: gets a folder for each subject.
        subjects: class word -> seed.
        masks: add the exact mask of every picture of `input/`.
    """
    for noun, seed in subjects.items():
        identity, folder = draw_identity(noun, seed), data_dir / noun
        sets = {"input": (INPUT_PLACES, INPUT_POSES), "heldout": (HELD_OUT_PLACES, HELD_OUT_POSES)}
        labels = {
            name: write_pictures(
                pictures_of(identity, places, poses), folder / name, masks and name == "input"
            )
            for name, (places, poses) in sets.items()
        }
        labels["identity"] = asdict(identity)
        (folder / "labels.json").write_text(json.dumps(labels, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Parses and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path(__file__).parents[2] / "data")
    parser.add_argument("--others", type=Path, metavar="DIR", help="Draw OTHERS, into DIR.")
    parser.add_argument("--masks", action="store_true", help="Write the masks of input/ too.")
    args = parser.parse_args(argv)
    folder, subjects = (args.others, OTHERS) if args.others else (args.data_dir, SUBJECTS)
    write_subjects(folder, subjects, args.masks)


if __name__ == "__main__":
    main()
