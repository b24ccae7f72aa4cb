"""Draws pictures ahead: arrays of pictures, and the seeds that their labels are drawn from again.

`<name>_images.npy` is (N, 128, 128, 3) uint8. Row i of `train` is `training_picture(i)`: the rows
come in pairs that show the same thing in two poses and places. Rows of `test` show identities that
are held out.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .records import HELD_OUT_FROM, NOUNS, Picture, draw_identity, draw_pose, draw_setting
from .render import SIZE, render

CHUNK, TEST_COUNT = 500, 1000


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


def _draw_chunk(name: str, start: int, count: int) -> np.ndarray:
    return np.stack([render(MAKERS[name](row)) for row in range(start, start + count)])


def draw_pictures(work_dir: Path, name: str, count: int, processes: int = 1) -> None:
    """Draws rows that are missing, in chunks of 500: `<work_dir>/data/<name>_<start>.npy`."""
    folder = work_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    starts = [s for s in range(0, count, CHUNK) if not (folder / f"{name}_{s:07d}.npy").exists()]
    with ProcessPoolExecutor(processes) as pool:
        sizes = [min(CHUNK, count - s) for s in starts]
        drawn = pool.map(_draw_chunk, [name] * len(starts), starts, sizes)
        for start, images in zip(starts, tqdm(drawn, name, len(starts)), strict=True):
            temporary = folder / f"{name}.tmp.npy"
            np.save(temporary, images)
            temporary.rename(folder / f"{name}_{start:07d}.npy")


def load_pictures(work_dir: Path, name: str, limit: int | None = None) -> np.ndarray:
    """All pictures drawn so far without a gap, (N, 128, 128, 3) uint8."""
    parts, rows = [], 0
    for path in sorted((work_dir / "data").glob(f"{name}_*.npy")):
        if int(path.stem.split("_")[1]) != rows or (limit is not None and rows >= limit):
            break
        parts.append(np.load(path))
        rows += len(parts[-1])
    if not parts:
        raise FileNotFoundError(f"no pictures named {name} in {work_dir}: run the data stage")
    assert parts[0].shape[1:] == (SIZE, SIZE, 3)
    return np.concatenate(parts)[:limit]
