"""Colour profiles: pictures turned into sRGB, which the models were trained on."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from typing import Any, cast

from PIL import Image, ImageCms

_SAME = 2  # of 255: a profile that moves no colour further is sRGB under another name
_STEPS = range(0, 256, 51)
# Which of Pillow's modes the numbers of a profile's colour space are in; and which they come from.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SOURCES = {
    "RGB": ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"),
    "L": ("1", "L", "LA", "La", "I", "F"),
    "CMYK": ("CMYK",),
}


def to_srgb(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What turns 8-bit pictures with the colour profile of `image` into sRGB.

    None where there is nothing to do: no profile, sRGB, or a profile that is damaged or belongs to
    another kind of picture.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[cast(Any, source.profile).xcolor_space.strip()]
        if image.mode not in _SOURCES[mode] and not (mode == "L" and image.mode.startswith("I")):
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK" and _changes_little(transform, mode):
            return None
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError, AttributeError):
        return None

    def convert(picture: Image.Image) -> Image.Image:
        return _applied(transform, picture.convert(mode))

    return convert


def _applied(transform: ImageCms.ImageCmsTransform, picture: Image.Image) -> Image.Image:
    # Pillow returns None only for a picture that is changed in place.
    return cast(Image.Image, ImageCms.applyTransform(picture, transform))


def _changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves colours, sampled evenly, where they are."""
    if mode == "L":
        colours = [(n, n, n) for n in range(0, 256, 5)]
    else:
        colours = list(product(_STEPS, _STEPS, _STEPS))
    swatch = Image.new("RGB", (len(colours), 1))
    swatch.putdata(colours)
    moved = _applied(transform, swatch.convert(mode))
    pairs = zip(swatch.tobytes(), moved.tobytes(), strict=True)
    return all(abs(before - after) <= _SAME for before, after in pairs)
