"""Blur and near duplicates, on pictures whose answer is known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from diffusekrona.data.likeness import BLURRED, alike, blur, signature


def scene(seed: int, side: int = 240) -> Image.Image:
    """Large shapes in random colours with fine structure over them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize((side, side), Image.Resampling.NEAREST), dtype=np.int64)
    values = values + rng.integers(-20, 20, (side, side, 1))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def test_blur_rises_with_the_radius() -> None:
    sharp = scene(0)
    values = [blur(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values)
    assert values[0] < BLURRED < values[-1]
    assert blur(Image.new("RGB", (50, 50), "red")) == 0


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


@pytest.mark.parametrize(
    ("change", "mirrored"),
    [
        (lambda i: i, False),
        (jpeg, False),
        (lambda i: i.resize((90, 90)), False),
        (lambda i: ImageEnhance.Brightness(i).enhance(1.15), False),
        (lambda i: i.crop((4, 4, 236, 236)), False),
        (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), True),
    ],
)
def test_copies_are_found(change, mirrored: bool) -> None:
    pictures = [scene(1), scene(2), change(scene(1)), scene(3)]
    assert alike([signature(picture) for picture in pictures]) == {2: (0, mirrored)}


def test_different_pictures_are_no_copies() -> None:
    assert alike([signature(scene(seed)) for seed in range(12)]) == {}
    assert alike([]) == {}
