"""The data stage: fetch the icon sets, render all pictures once, keep them as `.npy` arrays.

`base` holds what the UNet learns (one style, near-fixed geometry); `scorer` holds what CLIP learns
(three styles, many individuals of each class, free geometry); `held_out` is `scorer`-like, never
trained on. Each is `<name>_images.npy` (N, 64, 64, 3) uint8 and `<name>_labels.npy` (N, 3) int32:
concept, background, individual (an icon of one style in one colouring).
"""

from __future__ import annotations

import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .backgrounds import draw_background
from .composites import STYLES, compose, load_sprites, recolour
from .concepts import BACKGROUNDS, CONCEPTS

BASE_COUNT = 48_000
RECOLOURED = 96  # individuals of a class besides the three icons as they are
VIEWS, ICON_VIEWS = 6, 40
FREE = {"scale": (0.42, 0.85), "jitter": 8.0, "rotation": 20.0, "flip": True}


def fetch_icons(icons_dir: Path) -> None:
    """Puts each set's `icons.json` and licence notice into `<icons_dir>/<style>/`; uses `npm pack`.

    Raises `RuntimeError` when npm is missing or a package cannot be fetched.
    """
    for style, package in STYLES.items():
        folder = icons_dir / style
        if (folder / "icons.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"`{' '.join(command)}` failed in {folder}: {error}") from error
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            for name in ("info.json", "icons.json"):
                (folder / name).write_bytes(archive.extractfile(f"package/{name}").read())


def _base_chunk(icons_dir: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` composites of the first style, every concept and background equally often."""
    rng, sprites = np.random.default_rng(seed), load_sprites(icons_dir)
    style = next(iter(STYLES))
    images, labels = np.empty((count, 64, 64, 3), np.uint8), np.empty((count, 3), np.int32)
    concepts, places = list(CONCEPTS), list(BACKGROUNDS)
    pairs = np.arange(count) * 7919 % (len(concepts) * len(places))
    for i, pair in enumerate(tqdm(pairs, desc=f"base {seed}", mininterval=5)):
        c, b = divmod(int(pair), len(places))
        images[i] = compose(sprites[style, concepts[c]], draw_background(places[b], rng), rng)
        labels[i] = c, b, c
    return images, labels


def _scorer_chunk(
    icons_dir: Path, concepts: list[int], seed: int, recoloured: int, views: int, icon_views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Composites of many individuals of the given concepts, in all styles and free geometry."""
    rng, sprites = np.random.default_rng(seed), load_sprites(icons_dir)
    styles, names, places = list(STYLES), list(CONCEPTS), list(BACKGROUNDS)
    images, labels = [], []
    for c in tqdm(concepts, desc=f"scorer {seed}", mininterval=5):
        for individual in range(len(styles) + recoloured):
            sprite = sprites[styles[individual % len(styles)], names[c]]
            original = individual < len(styles)
            sprite = sprite if original else recolour(sprite, rng)
            for _ in range(icon_views if original else views):
                b = int(rng.integers(len(places)))
                images.append(
                    np.asarray(compose(sprite, draw_background(places[b], rng), rng, **FREE))
                )
                labels.append((c, b, c * 1000 + individual))
    return np.stack(images), np.array(labels, np.int32)


def build_data(work_dir: Path, processes: int = 2, base_count: int = BASE_COUNT) -> None:
    """Fetches and renders whatever is missing in `<work_dir>/icons` and `<work_dir>/data`."""
    icons_dir, out = work_dir / "icons", work_dir / "data"
    fetch_icons(icons_dir)
    out.mkdir(parents=True, exist_ok=True)
    ids = np.array_split(np.arange(len(CONCEPTS)), processes)
    each = base_count // processes
    jobs = {
        "held_out": [
            (_scorer_chunk, icons_dir, ids[i], 900 + i, 6, 4, 8) for i in range(processes)
        ],
        "scorer": [
            (_scorer_chunk, icons_dir, ids[i], 100 + i, RECOLOURED, VIEWS, ICON_VIEWS)
            for i in range(processes)
        ],
        "base": [(_base_chunk, icons_dir, each, i) for i in range(processes)],
    }
    with ProcessPoolExecutor(processes) as pool:
        for name, calls in jobs.items():
            if (out / f"{name}_labels.npy").exists():
                continue
            parts = [job.result() for job in [pool.submit(*call) for call in calls]]
            np.save(out / f"{name}_images.npy", np.concatenate([p[0] for p in parts]))
            np.save(out / f"{name}_labels.npy", np.concatenate([p[1] for p in parts]))


def load_data(work_dir: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 64, 64, 3) uint8, memory-mapped, and labels (N, 3) int32 of one set."""
    folder = work_dir / "data"
    images = np.load(folder / f"{name}_images.npy", mmap_mode="r")
    return images, np.load(folder / f"{name}_labels.npy")
