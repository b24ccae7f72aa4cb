"""One picture: open it, turn it upright and to RGB, cut it to size, to and from tensors.

Sizes are (height, width) in pixels throughout, as tensors have them; PIL's own are (width, height).
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from .errors import UserError

if TYPE_CHECKING:
    import torch

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif")
PICTURE_SUFFIXES += (".tif", ".tiff", ".ppm", ".pgm")
SMALLEST_SIDE = 8  # pixels: one cell of the autoencoder's latents
MOST_PIXELS = 180_000_000  # about 0.5 GB once decoded; a file that claims more is likely hostile


def why_not(path: Path) -> str | None:
    """Why `path` cannot be used as a picture, in a few words; None if it can. Decodes it."""
    try:
        if path.name.startswith("."):
            return "a hidden file"
        if path.is_dir():
            return "a folder (only pictures directly in the folder given are used)"
        if not path.is_file():  # before opening: reading a named pipe would wait for ever
            return "a link that leads nowhere" if path.is_symlink() else "not a file"
        if path.suffix.lower() in (".heic", ".heif"):
            return "HEIC pictures cannot be read; save it as JPEG or PNG"
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            return "not a picture"
        if path.stat().st_size == 0:
            return "an empty file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        height, width = _oriented_size(_open(path))
    except UserError as error:
        return str(error)
    if min(height, width) < SMALLEST_SIDE:
        return f"{width}×{height} pixels, too small (each side needs {SMALLEST_SIDE})"
    return None


def _open(path: Path, min_size: int | None = None) -> Image.Image:
    """Open and decode `path`; a UserError gives the reason alone, without the path."""
    with warnings.catch_warnings():
        # Size and metadata warnings; the size is judged here, on one line of our own.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path)
            with image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                full = _oriented_size(image)
                if min_size is not None:
                    # JPEG can decode at 1/2, 1/4, 1/8. Twice the size leaves the resize its work.
                    image.draft(None, (2 * min_size, 2 * min_size))
                drafted = _oriented_size(image) != full
                image.load()
            if drafted:
                image.info["original_size"] = full
            return image
        except Image.DecompressionBombError:
            limit = MOST_PIXELS // 1_000_000
            raise UserError(f"over {limit} million pixels; make it smaller") from None
        # Decoders meet a broken file with errors of any kind: OSError, SyntaxError, ValueError,
        # struct.error, IndexError, EOFError …
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                reason = f"cannot be read ({error.strerror})"
            else:
                reason = "broken or not a picture (cannot be decoded)"
            raise UserError(reason) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # metadata is broken more often than pictures are
        return 1


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    swap = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if swap else (image.height, image.width)


def load_picture(path: Path, min_size: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB: turned as its EXIF says, transparency laid on white.

    Args:
        path: the file. Grey, palette, CMYK, 16-bit, 32-bit and float pictures are converted; of
            an animation the first frame is taken.
        min_size: the shortest side, in pixels, that will be needed. A JPEG much larger than that
            is decoded at a fraction of its size, which is several times faster; its true size
            stays in `image.info["original_size"]` (height, width), where `fit_picture` finds it.

    Raises:
        UserError: the file is missing, broken or not a picture.
    """
    path = Path(path)
    try:
        image = _open(path, min_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    original = image.info.get("original_size")
    with suppress(Exception):  # a broken EXIF block: show the picture as it lies
        image = ImageOps.exif_transpose(image)
    image = _to_rgb(image)
    # Colour profiles, EXIF and GPS positions must not travel on into grids and results.
    image.info = {} if original is None else {"original_size": original}
    return image


def picture_size(path: Path, min_size: int | None = None) -> tuple[int, int]:
    """The (height, width) that `load_picture` gives with the same arguments, from the header alone.

    Raises:
        UserError: the file is missing, broken or not a picture.
    """
    try:
        with Image.open(path) as image:
            if min_size is not None:
                image.draft(None, (2 * min_size, 2 * min_size))
            return _oriented_size(image)
    except Exception as error:  # as in `_open`
        raise UserError(f"{path}: broken or not a picture (cannot be decoded)") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_8_bit(image).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        if image.mode == "La":  # PIL has no direct way from premultiplied grey
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats to 8 bits; PIL's own conversion clips where it should scale.

    The range is the mode's (16-bit), or else the smallest of the usual ones that holds the values.
    """
    import numpy as np

    grey = np.nan_to_num(np.asarray(image).astype(np.float64))
    usual = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        usual = (1.0, *usual)
    brightest = max(float(grey.max()), 0.0)
    top = next((value for value in usual if brightest <= value), brightest)
    return Image.fromarray(np.clip(np.rint(grey * (255 / top)), 0, 255).astype(np.uint8))


def fit_picture(
    image: Image.Image, size: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    """Scale a picture until it just covers `size`, and cut `size` out of it.

    Args:
        image: any size; converted to RGB if it is not.
        size: (height, width) wanted, in pixels.
        crop: where to cut, (vertical, horizontal): 0 is top or left, 0.5 the middle, 1 the end.

    Returns:
        The picture; its original (height, width); the cut's (top, left) in pixels of the scaled
        picture. The last two are what SDXL is conditioned on (arXiv 2307.01952, section 2.2).

    Raises:
        ValueError: `crop` lies outside 0 … 1 or `size` is not positive.
    """
    if not all(0 <= position <= 1 for position in crop) or min(size) < 1:
        raise ValueError(f"crop must lie in 0 … 1 and size be positive, got {crop} and {size}")
    (height, width), (tall, wide) = size, (image.height, image.width)
    original = image.info.get("original_size", (tall, wide))
    scale = max(height / tall, width / wide)
    scaled = (max(height, round(tall * scale)), max(width, round(wide * scale)))
    top = round((scaled[0] - height) * crop[0])
    left = round((scaled[1] - width) * crop[1])
    # Scaling only the part that is kept gives the same pixels and cannot run out of memory on a
    # picture a few pixels high and thousands wide.
    down, across = tall / scaled[0], wide / scaled[1]
    box = (
        left * across,
        top * down,
        min((left + width) * across, wide),
        min((top + height) * down, tall),
    )
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    fitted = rgb.resize((width, height), Image.Resampling.LANCZOS, box=box)
    fitted.info = {}
    return fitted, original, (top, left)


def load_square(path: Path) -> Image.Image:
    """A picture cut to the square in its middle, as grids show photos. UserError as above."""
    image = load_picture(path)
    return fit_picture(image, (min(image.size),) * 2)[0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 (3, H, W) in [-1, 1]."""
    import numpy as np
    import torch

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1.0).contiguous()


def to_image(tensor: torch.Tensor) -> Image.Image:
    """The inverse of `to_tensor`: (3, H, W) of any float type, clipped to [-1, 1]; NaN is black."""
    import torch

    pixels = torch.nan_to_num(tensor.detach().float().cpu(), nan=-1.0).clamp(-1, 1)
    pixels = ((pixels + 1.0) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def content_key(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal: what cached latents are filed under."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
