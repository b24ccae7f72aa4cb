"""What the UNets learn from: latents of the pictures, where the thing is, captions as tokens.

All of it lies in the device's memory, a few kilobytes for a picture. Pictures that are drawn while
a UNet trains join as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from .data import files_of
from .tokens import build_tokenizer, tokenize
from .vae import PIXELS, encode_means

CAPTION_DROPOUT = 0.1
PLAIN_TIME_IDS = (PIXELS, PIXELS, 0, 0, PIXELS, PIXELS)
CROPPED_COVER = 0.25  # of a cropped picture's latents: its thing is somewhere else


@dataclass
class Batch:
    """A few samples.

    Attributes:
        latents: (N, 8, 16, 16).
        masks: (N, 1, 16, 16), the share of each latent that the thing covers.
        ids: (N, 32) tokens of a caption; of none in 10 %, for classifier-free guidance.
        said: (N,), 0 where the caption is empty, else 1.
        time_ids: (N, 6) original height and width, top, left, height and width, as SDXL has them.
    """

    latents: torch.Tensor
    masks: torch.Tensor
    ids: torch.Tensor
    said: torch.Tensor
    time_ids: torch.Tensor


class Samples:
    """The samples of all pictures that were drawn so far.

    Args:
        vae: with standardised latents, on the device of training.
        cropped: one picture in so many is blurred, enlarged and cropped; 0: none is.
        name: of the pictures: train, or test for those of held-out things.
    """

    def __init__(self, work_dir: Path, vae: AutoencoderKL, cropped: int = 0, name: str = "train"):
        self.work_dir, self.vae, self.cropped, self.name = work_dir, vae, cropped, name
        self.device = next(vae.parameters()).device
        self.files = 0
        self.parts: list[torch.Tensor] = []
        self.empty = tokenize(build_tokenizer(), [""]).to(self.device)
        self.grow()
        if not self.parts:
            raise FileNotFoundError(f"no pictures in {work_dir}: run the data stage")

    def grow(self, most: int | None = None) -> None:
        """Takes in pictures drawn since the last time, of `most` files at most."""
        fresh = list(files_of(self.work_dir, self.name))[self.files :][:most]
        if not fresh:
            return
        added = [self._read(path, self.files + i) for i, path in enumerate(fresh)]
        self.files += len(fresh)
        old = [[part] for part in self.parts] or [[] for _ in added[0]]
        columns = zip(old, zip(*added, strict=True), strict=True)
        self.parts = [torch.cat([*known, *more]) for known, more in columns]

    def _read(self, path: Path, seed: int) -> tuple[torch.Tensor, ...]:
        with np.load(path) as arrays:
            images, captions = arrays["small"], arrays["captions"]
            masks = arrays["masks"].astype(np.float16) / 4
        time_ids = np.tile(np.int16(PLAIN_TIME_IDS), (len(images), 1))
        if self.cropped:
            rng = np.random.default_rng(seed)
            for row in range(0, len(images), self.cropped):
                images[row], time_ids[row] = crop(images[row], rng)
                masks[row] = CROPPED_COVER
        latents = encode_means(self.vae, images, 500 if self.device.type == "cuda" else 64)
        rest = (torch.from_numpy(part).to(self.device) for part in (masks, captions, time_ids))
        return latents.to(self.device), *rest

    def draw(self, count: int) -> Batch:
        """`count` samples at random, from torch's generator of the device."""
        latents, masks, captions, time_ids = self.parts
        rows = torch.randint(len(latents), (count,), device=self.device)
        which = torch.randint(captions.shape[1], (count,), device=self.device)
        said = (torch.rand(count, device=self.device) >= CAPTION_DROPOUT).long()
        ids = torch.where(said[:, None] > 0, captions[rows, which].long(), self.empty)
        latent, mask = latents[rows].float(), masks[rows].float()[:, None]
        return Batch(latent, mask, ids, said.float(), time_ids[rows].float())


def crop(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    """A picture (64, 64, 3) blurred, enlarged and cropped to (64, 64, 3), and its time ids."""
    original = int(rng.integers(PIXELS // 2, PIXELS + 1))
    enlarged = int(rng.integers(PIXELS, PIXELS * 11 // 8 + 1))
    top, left = (int(v) for v in rng.integers(0, enlarged - PIXELS + 1, 2))
    picture = Image.fromarray(image).resize((original, original), Image.BICUBIC)
    picture = picture.resize((enlarged, enlarged), Image.BICUBIC)
    part = picture.crop((left, top, left + PIXELS, top + PIXELS))
    return np.asarray(part), (original, original, top, left, PIXELS, PIXELS)
