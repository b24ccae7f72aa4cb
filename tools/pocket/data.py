"""Draws pictures ahead, in files of 500, with what a UNet is told of them.

`data/<name>_<first row>.npz` holds, uint8 unless said otherwise: `images` (500, 128, 128, 3);
`small` (500, 64, 64, 3), the same at half the size; `masks` (500, 16, 16), how many quarters of
each latent the thing covers; `captions` (500, 8, 32) int16, eight captions of each picture as
tokens. Other labels need no file: row i of `train` is `training_picture(i)`, in pairs that show the
same thing in two poses and places. Rows of `test` show identities that are held out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .captions import caption
from .records import HELD_OUT_FROM, NOUNS, Picture, draw_identity, draw_pose, draw_setting
from .render import coverage, render
from .tokens import build_tokenizer, tokenize

CHUNK, TEST_COUNT, CAPTIONS = 500, 1000, 8


def training_picture(row: int) -> Picture:
    """Row `row` of the training pictures; rows 2i and 2i + 1 show the same identity."""
    pair, rng = row // 2, random.Random(f"training {row}")
    identity = draw_identity(NOUNS[pair % len(NOUNS)], pair)
    return Picture(identity, draw_pose(rng), draw_setting(rng))


def test_picture(row: int) -> Picture:
    """Row `row` of the test pictures, paired in the same way; identities are held out."""
    pair, rng = row // 2, random.Random(f"test {row}")
    identity = draw_identity(NOUNS[pair % len(NOUNS)], HELD_OUT_FROM + pair)
    return Picture(identity, draw_pose(rng), draw_setting(rng))


MAKERS = {"train": training_picture, "test": test_picture}


def halved(images: np.ndarray) -> np.ndarray:
    """Pictures (N, 2H, 2W, 3) at half their size: means of 2 x 2 pixels, uint8."""
    part = images.astype(np.uint16)
    total = part[:, ::2, ::2] + part[:, 1::2, ::2] + part[:, ::2, 1::2] + part[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _draw_chunk(name: str, start: int) -> dict[str, np.ndarray]:
    pictures = [MAKERS[name](row) for row in range(start, start + CHUNK)]
    fine = np.stack([coverage(picture) for picture in pictures])
    rng, tokenizer = random.Random(f"captions {name} {start}"), build_tokenizer()
    texts = [caption(picture, rng) for picture in pictures for _ in range(CAPTIONS)]
    images = np.stack([render(picture) for picture in pictures])
    return {
        "images": images,
        "small": halved(images),
        "masks": fine.reshape(CHUNK, 16, 2, 16, 2).sum((2, 4), dtype=np.uint8),
        "captions": tokenize(tokenizer, texts).view(CHUNK, CAPTIONS, -1).numpy().astype(np.int16),
    }


def draw_pictures(work_dir: Path, name: str, count: int, processes: int = 1) -> None:
    """Draws the files of `<work_dir>/data/` that are missing, up to `count` pictures or a few more.

    Whole files only, so that a file's name tells its rows. Other programs may read meanwhile.
    """
    folder = work_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    starts = [s for s in range(0, count, CHUNK) if not (folder / f"{name}_{s:07d}.npz").exists()]
    with ProcessPoolExecutor(processes) as pool:
        drawn = pool.map(_draw_chunk, [name] * len(starts), starts)
        for start, arrays in zip(starts, tqdm(drawn, name, len(starts)), strict=True):
            temporary = folder / f"{name}.tmp.npz"
            np.savez(temporary, **arrays)
            temporary.rename(folder / f"{name}_{start:07d}.npz")


def files_of(work_dir: Path, name: str) -> Iterator[Path]:
    """The files drawn so far, in order, up to the first gap."""
    for number, path in enumerate(sorted((work_dir / "data").glob(f"{name}_*.npz"))):
        if int(path.stem.split("_")[1]) != number * CHUNK:
            return
        yield path


def load_pictures(
    work_dir: Path, name: str, limit: int | None = None, part: str = "images"
) -> np.ndarray:
    """All pictures drawn so far, or the first `limit`: uint8 (N, 128, 128, 3), or as `small`."""
    files = list(files_of(work_dir, name))[: None if limit is None else -(-limit // CHUNK)]
    if not files:
        raise FileNotFoundError(f"no pictures named {name} in {work_dir}: run the data stage")
    return np.concatenate([np.load(path)[part] for path in files])[:limit]
