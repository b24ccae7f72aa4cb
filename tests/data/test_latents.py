"""Crops of pictures and their mirrored copies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image, ImageOps

from diffusekrona.bases.base import Family
from diffusekrona.data import latents

PIXELS = cast(Family, SimpleNamespace(encode_pictures=lambda vae, image: image))  # no VAE


def variants(picture: Image.Image, crop: tuple[float, float], flip: bool) -> list[latents.Variant]:
    vae: Any = None
    return latents._encode(PIXELS, vae, picture, Path("a.png"), (32, 32), [crop], flip)


@pytest.mark.parametrize("crop", [(0.5, 0.15), (0.5, 0.5), (0.0, 1.0)])
def test_a_mirrored_copy_is_a_cut_of_the_mirrored_picture(crop: tuple[float, float]) -> None:
    """Its time ids, too: SDXL is conditioned on where the cut was made."""
    picture = Image.effect_noise((160, 64), 60).convert("RGB")
    plain, mirrored = variants(picture, crop, flip=True)
    (other,) = variants(ImageOps.mirror(picture), (crop[0], 1 - crop[1]), flip=False)
    torch.testing.assert_close(mirrored.moments, other.moments, rtol=0, atol=0.02)
    assert mirrored.time_ids.tolist() == other.time_ids.tolist()
    left = round(48 * crop[1])  # scaled to 80 × 32
    assert (plain.time_ids[3], mirrored.time_ids[3]) == (left, 48 - left)
