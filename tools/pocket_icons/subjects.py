"""Renders the sample subjects in `data/` and the held-out sheets of the tests.

    python -m tools.pocket_icons.subjects --work_dir DIR

Both come from a style that no stage trains on (3-D emoji), so they are new to the base and to the
scorer. Sheets are PNGs of 64 x 64 tiles with a JSON list of each tile's labels beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from .backgrounds import SIZE, draw_background
from .composites import compose, fit_square, recolour
from .concepts import CONCEPTS, caption
from .data import load_data

PACKAGE = "@lobehub/fluent-emoji-3d"
#: subject folder -> (class noun, file of the package, degrees of hue rotation).
SUBJECTS = {
    "dog": ("dog", "1f429", 0),
    "cat": ("cat", "1f408-200d-2b1b", 0),
    "teapot": ("teapot", "1fad6", 195),
}
#: One row a picture: background, extent (share of frame), shift x and y (64ths), turn (degrees).
SHOTS = (
    ("grass", 0.70, 2, 1, 4),
    ("table", 0.78, -3, 2, -5),
    ("white", 0.66, 4, -2, 7),
    ("brick", 0.74, -4, 0, 2),
    ("yellow", 0.62, 0, 3, -8),
)
#: Other individuals of the subjects' classes, and further classes, for the scorer's test.
OTHERS = {
    "dog": ("1f415", "1f9ae", "1f415-200d-1f9ba"),
    "cat": ("1f408",),
    "teapot": ("1fad6",),
    "car": ("1f697", "1f699"),
    "backpack": ("1f392",),
    "robot": ("1f916",),
    "owl": ("1f989",),
    "clock": ("23f0", "1f570-fe0f"),
    "umbrella": ("2602-fe0f", "2614"),
    "bus": ("1f68c", "1f68d"),
    "rabbit": ("1f407",),
    "guitar": ("1f3b8",),
}


def fetch_3d(folder: Path) -> None:
    """Puts the package's pictures into `folder` (`npm pack`), unless they are there."""
    if any(folder.glob("*.webp")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive.getmembers():
            if member.name.endswith(".webp"):
                name = Path(member.name).name
                (folder / name).write_bytes(archive.extractfile(member).read())


def open_3d(folder: Path, name: str, turn_hue: int = 0, size: int = 128) -> Image.Image:
    """One picture of the package: RGBA, cropped, `size` x `size`, hue turned by degrees."""
    image = Image.open(folder / f"{name}.webp").convert("RGBA")
    alpha = image.getchannel("A")
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point([(h + round(turn_hue / 360 * 256)) % 256 for h in range(256)])
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    image.putalpha(alpha)
    return fit_square(image, size)


def render_subjects(folder_3d: Path, data_dir: Path, size: int = 256) -> None:
    """Writes five `size` x `size` PNGs a subject to `<data_dir>/<subject>/input/`.

    Each with its caption in a text file beside it: what is said of the place is not learned as part
    of the subject.
    """
    for subject, (noun, name, hue) in SUBJECTS.items():
        sprite = open_3d(folder_3d, name, hue)
        target = data_dir / subject / "input"
        target.mkdir(parents=True, exist_ok=True)
        for i, (place, extent, x, y, turn) in enumerate(SHOTS):
            rng = np.random.default_rng(i)
            picture = compose(
                sprite, draw_background(place, rng), rng, fixed=(extent, x, y, turn), size=size
            )
            picture.save(target / f"{i:02d}.png", optimize=True)
            words = caption(noun, place, "sks")
            (target / f"{i:02d}.txt").write_text(words + "\n", encoding="utf-8")


def write_sheet(images: list, labels: list, path: Path, columns: int = 24) -> None:
    """Tiles of 64 x 64 to `path` (PNG), labels to the same name with `.json`."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE))
    for i, image in enumerate(images):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        sheet.paste(image, (i % columns * SIZE, i // columns * SIZE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    path.with_suffix(".json").write_text(json.dumps({"columns": columns, "labels": labels}) + "\n")


def write_test_sheets(work_dir: Path, folder_3d: Path, out: Path) -> None:
    """`named.png`: the three icons of every noun on held-out backgrounds. `individuals.png`: four
    views of each individual of `OTHERS` and of the sample subjects, two of a class recoloured.
    """
    images, labels = load_data(work_dir, "held_out")
    _, first = np.unique(labels[:, 2], return_index=True)
    rows = [r for r in first if labels[r, 2] % 1000 < 3]
    names = list(CONCEPTS)
    write_sheet(
        [np.asarray(images[r]) for r in rows],
        [names[labels[r, 0]] for r in rows],
        out / "named.png",
    )
    rng = np.random.default_rng(77)
    tiles, tags = [], []
    for noun, files in OTHERS.items():
        sprites = [open_3d(folder_3d, f) for f in files]
        sprites += [recolour(sprites[0], rng) for _ in range(2)]
        sprites += [open_3d(folder_3d, f, h) for n, f, h in SUBJECTS.values() if n == noun]
        for i, sprite in enumerate(sprites):
            places = rng.permutation(["grass", "snow", "brick", "sunset", "blue", "city", "table"])
            for place in places[:4]:
                background = draw_background(str(place), rng)
                tiles.append(compose(sprite, background, rng, (0.55, 0.8), 5.0, 12.0))
                tags.append([noun, i])
    write_sheet(tiles, tags, out / "individuals.png")


def main() -> None:
    """Parses the command line, fetches, renders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pocket_build"))
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--sheets_dir", type=Path, default=Path("tests/pocket/sheets"))
    args = parser.parse_args()
    folder = args.work_dir / "icons" / "fluent-emoji-3d"
    fetch_3d(folder)
    render_subjects(folder, args.data_dir)
    write_test_sheets(args.work_dir, folder, args.sheets_dir)


if __name__ == "__main__":
    main()
