"""Pictures to latent distributions, each crop and mirrored copy once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..bases.base import Family
from ..common.errors import UserError
from ..common.pictures import (
    content_key,
    covering_size,
    fit_picture,
    load_picture,
    picture_size,
    to_tensor,
)
from ..common.seeds import seed_for
from .disk_cache import DiskCache
from .examples import Example
from .masks import cut_masks

RANDOM_CROPS = 4  # cached random crops of a picture that does not have the target's shape


@dataclass
class Variant:
    """One crop of one picture, flipped or not.

    Attributes:
        moments: (2c, h, w) mean and std of the latents, fp32 on the CPU.
        time_ids: (6,) original height, width, crop top, left, target height, width, in pixels;
            a mirrored copy's left is that of the mirrored picture.
        mask: (1, h, w) from 0 to 1, or None for a picture without one.
    """

    moments: torch.Tensor
    time_ids: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass
class Item:
    """A picture as the loop reads it.

    Attributes:
        variants: at each size (height, width) that is trained.
        captions, caption_dropout, repeats, weight, regularisation: as its example has them.
    """

    captions: tuple[str, ...]
    variants: dict[tuple[int, int], list[Variant]]
    caption_dropout: float = 0.0
    repeats: int = 1
    weight: float = 1.0
    regularisation: bool = False


@dataclass(frozen=True)
class Cropping:
    """How pictures are cut: `center` or random places, and whether mirrored copies are added."""

    center: bool = False
    flip: bool = False
    seed: int = 0


@torch.no_grad()
def cache_pictures(
    family: Family,
    vae: Callable[[], Any],
    examples: Sequence[Example],
    sizes: Sequence[Sequence[tuple[int, int]]],
    seed: int,
    cache: DiskCache,
    cache_key: Mapping[str, Any],
    progress: bool = True,
) -> list[Item]:
    """Encode every picture at each of its sizes, or find it on the disk.

    Args:
        vae: gives the VAE; called when a picture is met that is not on the disk.
        sizes: the (height, width) wanted of each example, in pixels.
        seed: of random places, which are a pure function of it and the picture's number.
        cache_key: what the latents depend on beside the picture.

    Raises:
        UserError: a picture or mask that cannot be read, or that the VAE turns into NaN.
    """
    items = []
    pairs = list(zip(examples, sizes, strict=True))
    bar = tqdm(pairs, desc="latents", unit="picture", disable=not progress or not pairs)
    for number, (example, wanted) in enumerate(bar):
        path = example.path
        cropping = Cropping(example.center_crop, example.random_flip, seed)
        least = max(max(size) for size in wanted)
        have, content = picture_size(path, least), content_key(path)
        picture, variants = None, {}
        for size in wanted:
            crops = crop_places(have, size, cropping, number)
            cut = {"decoded_for": least, "size": size, "crops": crops, "flip": cropping.flip}
            key = {"picture": content, **cut, **cache_key}
            count = len(crops) * (2 if cropping.flip else 1)
            shapes = {"moments": (count, None, None, None), "time_ids": (count, 6)}
            found = cache.read("latents", key, shapes)
            if found is not None:
                moments, time_ids = found[0]["moments"], found[0]["time_ids"]
                variants[size] = list(map(Variant, moments, time_ids))
                continue
            picture = picture or load_picture(path, min_size=least)
            variants[size] = _encode(family, vae(), picture, path, size, crops, cropping.flip)
            stacked = {
                "moments": torch.stack([variant.moments for variant in variants[size]]),
                "time_ids": torch.stack([variant.time_ids for variant in variants[size]]),
            }
            cache.write("latents", key, stacked)
        for size in wanted if example.mask is not None else ():
            crops = crop_places(have, size, cropping, number)
            _add_masks(example, have, size, crops, cropping.flip, variants[size])
        item = Item(
            example.captions, variants, example.caption_dropout, example.repeats, example.weight,
            example.regularisation,
        )  # fmt: skip
        items.append(item)
    return items


def _add_masks(
    example: Example,
    have: tuple[int, int],
    size: tuple[int, int],
    crops: Sequence[tuple[float, float]],
    flip: bool,
    variants: Sequence[Variant],
) -> None:
    """Give each variant of one size its part of the mask. Not kept on the disk: it is fast."""
    mask, latent_size = example.mask, tuple(variants[0].moments.shape[-2:])
    assert mask is not None
    cut = cut_masks(mask, example.path, have, size, crops, flip, latent_size)
    for variant, part in zip(variants, cut, strict=True):
        variant.mask = part


def crop_places(
    have: tuple[int, int], want: tuple[int, int], cropping: Cropping, number: int
) -> list[tuple[float, float]]:
    """Where a picture is cut, as `fit_picture` has it: one place, or random ones of a picture that
    does not have the target's shape.

    Args:
        have, want: (height, width) in pixels.
        number: the picture's, of which the places are a pure function.
    """
    same_shape = abs(have[0] * want[1] - have[1] * want[0]) < max(have[0], have[1])
    if cropping.center or same_shape:
        return [(0.5, 0.5)]
    chance = random.Random(seed_for(cropping.seed, "crop", number))
    return [(chance.random(), chance.random()) for _ in range(RANDOM_CROPS)]


def _encode(
    family: Family,
    vae: Any,
    picture: Any,
    path: Path,
    size: tuple[int, int],
    crops: Sequence[tuple[float, float]],
    flip: bool,
) -> list[Variant]:
    variants = []
    for crop in crops:
        fitted, original, corner = fit_picture(picture, size, crop)
        pixels = to_tensor(fitted)
        copies = [(pixels, corner)]
        if flip:  # the cut of the mirrored picture, whose left is this one's right
            top, left = corner
            width = covering_size((picture.height, picture.width), size)[1]
            copies.append((pixels.flip(-1), (top, width - size[1] - left)))
        for image, place in copies:
            time_ids = torch.tensor([*original, *place, *size], dtype=torch.float32)
            moments = family.encode_pictures(vae, image.unsqueeze(0))[0].cpu()
            if not torch.isfinite(moments).all():
                raise UserError(
                    f"The VAE gives NaN for {path} in {vae.dtype}: train with --vae_dtype fp32, or "
                    "give a VAE made for half precision with --pretrained_vae_model_name_or_path."
                )
            variants.append(Variant(moments, time_ids))
    return variants
