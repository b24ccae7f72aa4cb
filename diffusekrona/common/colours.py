"""Pictures of any mode and colour profile to 8-bit sRGB, which the models were trained on."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageCms

if TYPE_CHECKING:
    import numpy as np

_BAND_PIXELS = 4_000_000  # converted at once
_SAME = 2  # of 255: a profile that moves no colour further is sRGB under another name
_STEPS = range(0, 256, 51)
# Which of Pillow's modes the numbers of a profile's colour space are in; and which they come from.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SOURCES = {
    "RGB": ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"),
    "L": ("1", "L", "LA", "La", "I", "F"),
    "CMYK": ("CMYK",),
}


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB: by the picture's colour profile, grey stretched, transparency laid on white.

    Band by band, so that a large picture needs no more than itself and its RGB copy.
    """
    to_srgb = profile_to_srgb(image)
    if image.mode == "RGB" and to_srgb is None and "transparency" not in image.info:
        return image
    top = _brightest(image) if _is_deep(image) else None
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for start in range(0, image.height, rows):
        band = image.crop((0, start, image.width, min(start + rows, image.height)))
        result.paste(_band_to_rgb(band, to_srgb, top), (0, start))
    return result


def _band_to_rgb(
    image: Image.Image, to_srgb: Callable[[Image.Image], Image.Image] | None, top: float | None
) -> Image.Image:
    alpha = alpha_of(image) if has_alpha(image) else None
    if top is not None:
        image = _deep_grey_to_8_bit(image, top)
    elif alpha is not None:
        if image.mode == "La":  # PIL has no direct way from premultiplied grey
            image = image.convert("LA")
        grey = image.mode == "LA"
        image = image.convert("RGBA").convert("RGB")
        image = image.convert("L") if grey else image
    rgb = (to_srgb(image) if to_srgb else image).convert("RGB")
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    white = Image.new("RGBA", rgb.size, "white")
    return Image.alpha_composite(white, rgb).convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _brightest(image: Image.Image) -> float:
    """The value that becomes white in grey of 16 or 32 bits or floats: the mode's largest (16-bit),
    or else the smallest of the usual ones that holds the values."""
    usual = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        usual = (1.0, *usual)
    rows = max(1, _BAND_PIXELS // image.width)
    brightest = 0.0
    for start in range(0, image.height, rows):
        band = image.crop((0, start, image.width, min(start + rows, image.height)))
        brightest = max(brightest, float(_values(band).max()))
    return next((value for value in usual if brightest <= value), brightest)


def _values(image: Image.Image) -> np.ndarray:
    import numpy as np

    return np.nan_to_num(np.asarray(image).astype(np.float64))


def _deep_grey_to_8_bit(image: Image.Image, top: float) -> Image.Image:
    """Grey of 16 or 32 bits or floats to 8 bits; PIL's own conversion clips where it should
    scale."""
    import numpy as np

    scaled = np.rint(_values(image) * (255 / top))
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture says which of its pixels are transparent."""
    transparent = "transparency" in image.info
    return image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or transparent


def alpha_of(image: Image.Image) -> Image.Image:
    """The alpha channel of a picture that has one, 8-bit."""
    import numpy as np

    if _is_deep(image):  # Pillow drops the value that is transparent
        opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray(opaque.astype(np.uint8) * 255)
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA").getchannel("A")


def profile_to_srgb(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
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
