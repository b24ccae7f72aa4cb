"""One picture: open it, turn it upright and to RGB, cut it to size, to and from tensors.

Sizes are (height, width) in pixels throughout, as tensors have them; PIL's own are (width, height).
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from . import colours, encodings
from .errors import UserError
from .files import TimedFile

if TYPE_CHECKING:
    import torch

HEIF_SUFFIXES = (".heic", ".heif")  # read through pillow-heif, where it is installed
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
    *HEIF_SUFFIXES,
)
# What the suffixes stand for, whatever they really hold: Pillow would hand EPS to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")
SMALLEST_SIDE = 8  # pixels: one cell of the autoencoder's latents
MOST_PIXELS = 180_000_000  # a file that claims more is likely hostile
LONGEST_SIDE = 1_000_000  # pixels; some decoders fill a line pixel by pixel
MOST_SECONDS = 10.0  # of CPU time to read one file: a large photo needs one or two
MOST_BYTES = 1_000_000_000  # of a decoded picture and its RGB copy together
_JPEG_BLOCK = 1024  # bytes given to the decoder at once: a hundred scans at most


def why_not(path: Path) -> str | None:
    """Why `path` cannot be used as a picture, in a few words; None if it can. Decodes it."""
    try:
        if path.name.startswith("."):
            return "a hidden file"
        if path.is_dir():
            return "a folder (only pictures directly in the folder given are used)"
        if not path.is_file():  # before opening: reading a named pipe would wait for ever
            return "a link that leads nowhere" if path.is_symlink() else "not a file"
        if path.suffix.lower() in HEIF_SUFFIXES and not _register_heif():
            return "HEIC pictures need pillow-heif: pip install pillow-heif, or save it as JPEG"
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


@functools.cache
def _register_heif() -> bool:
    """Let Pillow read HEIC; whether it can."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@contextmanager
def opened(path: Path) -> Generator[Image.Image]:
    """Pillow's own `open`, of the formats that are accepted; raises what Pillow raises, and a
    UserError if decoding takes too long or the picture is HDR. `info` holds a colour profile also
    where the file describes its colours in another way."""
    Image.init()  # `formats` finds only what is registered
    heif = path.suffix.lower() in HEIF_SUFFIXES and _register_heif()
    formats = ("HEIF", *_FORMATS) if heif else _FORMATS
    with (
        _without_warnings(),
        TimedFile(path, MOST_SECONDS) as file,
        Image.open(file, formats=formats) as image,
    ):
        if isinstance(image, JpegImageFile):
            image.decodermaxblock = _JPEG_BLOCK
        encodings.add_profile(image, file)
        encodings.scale_transparency(image)
        yield image


@contextmanager
def _without_warnings() -> Generator[None]:
    """Pillow's are on broken metadata and large sizes, which are judged here, on lines of our
    own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@_without_warnings()
def open_png(path: Path) -> Image.Image:
    """Open a picture of our own making, which is a PNG; raises what Pillow raises."""
    Image.preinit()
    return Image.open(path, formats=("PNG",))


def _open(path: Path, min_size: int | None = None) -> Image.Image:
    """Open and decode `path`; a UserError gives the reason alone, without the path."""
    try:
        with opened(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > LONGEST_SIDE:
                raise UserError(f"a side of over {LONGEST_SIDE:,} pixels; make it smaller")
            full = _oriented_size(image)
            if min_size is not None:
                # JPEG can decode at 1/2, 1/4, 1/8. Twice the size leaves the resize its work.
                image.draft(None, (2 * min_size, 2 * min_size))
            if (needed := _bytes_needed(image)) > MOST_BYTES:
                raise UserError(
                    f"{image.width}×{image.height} pixels of mode {image.mode} need "
                    f"{needed / 1e9:.1f} GB of memory; make it smaller"
                )
            drafted = _oriented_size(image) != full
            image.load()
        if drafted:
            image.info["original_size"] = full
        return image
    except Image.DecompressionBombError:
        limit = MOST_PIXELS // 1_000_000
        raise UserError(f"over {limit} million pixels; make it smaller") from None
    except UserError:
        raise
    # Decoders meet a broken file with errors of any kind: OSError, SyntaxError, ValueError,
    # struct.error, IndexError, EOFError …
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = "broken or not a picture (cannot be decoded)"
        raise UserError(reason) from error


def _bytes_needed(image: Image.Image) -> int:
    """Of the decoded picture and the RGB copy that is made of it."""
    if image.format == "WEBP":  # whose decoder holds two canvases and a copy
        return image.width * image.height * 20
    each = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    copied = image.mode != "RGB" or "icc_profile" in image.info
    return image.width * image.height * (each + 4 * copied)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # metadata is broken more often than pictures are
        return 1


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    swap = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if swap else (image.height, image.width)


@_without_warnings()
def load_picture(path: Path, min_size: int | None = None) -> Image.Image:
    """Read a picture as 8-bit sRGB: turned as its EXIF says, its colour profile (or PNG's cICP,
    gAMA and cHRM, or nclx) applied, transparency laid on white.

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
    with suppress(Exception):  # a broken EXIF block: show the picture as stored
        image = ImageOps.exif_transpose(image)
    image = colours.to_rgb(image)
    # Colour profiles, EXIF and GPS positions must not travel on into grids and results.
    image.info = {} if original is None else {"original_size": original}
    return image


@_without_warnings()
def load_alpha(path: Path) -> Image.Image | None:
    """A picture's alpha channel, 8-bit and turned as its EXIF says; None if it has none.

    Raises:
        UserError: the file is missing, broken or not a picture.
    """
    try:
        image = _open(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not colours.has_alpha(image):
        return None
    with suppress(Exception):  # as in `load_picture`
        image = ImageOps.exif_transpose(image)
    return colours.alpha_of(image)


def picture_size(path: Path, min_size: int | None = None) -> tuple[int, int]:
    """The (height, width) that `load_picture` gives with the same arguments, from the header alone.

    Raises:
        UserError: the file is missing, broken or not a picture.
    """
    try:
        with opened(path) as image:
            if min_size is not None:
                image.draft(None, (2 * min_size, 2 * min_size))
            return _oriented_size(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # as in `_open`
        raise UserError(f"{path}: broken or not a picture (cannot be decoded)") from error


def covering_size(have: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of a picture scaled until it just covers `size`, all in pixels."""
    scale = max(want / own for want, own in zip(size, have, strict=True))
    height, width = (max(want, round(own * scale)) for want, own in zip(size, have, strict=True))
    return height, width


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
        ValueError: `crop` is outside 0 … 1 or `size` is not positive.
    """
    if not all(0 <= position <= 1 for position in crop) or min(size) < 1:
        raise ValueError(f"crop must be in 0 … 1 and size be positive, got {crop} and {size}")
    (height, width), (tall, wide) = size, (image.height, image.width)
    original = image.info.get("original_size", (tall, wide))
    scaled = covering_size((tall, wide), size)
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
    side = min(image.size)
    return fit_picture(image, (side, side))[0]


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
