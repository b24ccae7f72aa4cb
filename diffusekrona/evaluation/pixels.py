"""Pictures to a scorer's pixels, exactly as the scorers' own programs prepare them.

Resize the shorter side (antialiased, as PIL does), cut out the middle, normalise. This is what
OpenAI's CLIP does through torchvision: the longer side is rounded down, half a pixel of the crop to
the even number. Done with PIL alone, so that scores do not depend on what else is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..common.errors import UserError, reason_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DINO_ENLARGED = 256 / 224  # DINO's own evaluation resizes to 256 and cuts out 224


@dataclass(frozen=True)
class Pixels:
    """How pictures are prepared: `resize` the shorter side, `crop` the middle, both in pixels."""

    resize: int = 224
    crop: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB pictures of any sizes to (n, 3, crop, crop), fp32, normalised."""
        rows = np.stack([np.asarray(self.cut(image.convert("RGB"))) for image in images])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def cut(self, image: Image.Image) -> Image.Image:
        """The middle (crop, crop) of the picture, resized."""
        width, height = image.size
        short, long = min(width, height), max(width, height)
        longer = int(self.resize * long / short)
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        if size != image.size:
            image = image.resize(size, self.resample)
        left, top = (round((side - self.crop) / 2.0) for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))


def read_pixels(name_or_path: str) -> Pixels:
    """The preparation that a model's preprocessor_config.json asks for, from a folder or the hub.

    A config that squeezes pictures to a square with no crop (as DINO's ports have it) is read as
    DINO's own evaluation: resize to 256/224 of the size, bicubic, then cut.

    Raises:
        UserError: there is no such file, or its sizes cannot be understood.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config = ImageProcessingMixin.get_image_processor_dict(name_or_path)[0]
        return from_config(config)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = reason_of(error)
        raise UserError(
            f"Cannot read the preprocessing of {name_or_path!r} (preprocessor_config.json): "
            f"{reason}"
        ) from error


def from_config(config: Mapping[str, Any]) -> Pixels:
    """From the content of a preprocessor_config.json."""
    look: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if config.get("do_normalize", True):
        look = {"mean": tuple(config["image_mean"]), "std": tuple(config["image_std"])}
    crop = config.get("crop_size") if config.get("do_center_crop", "crop_size" in config) else None
    size = config["size"]
    if crop is None:
        side = _side(size)
        shortest = isinstance(size, Mapping) and "shortest_edge" in size
        return Pixels(side if shortest else round(side * _DINO_ENLARGED), side, **look)
    return Pixels(_side(size), _side(crop), **look, resample=config.get("resample", 3))


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size["height"])
    return int(size[0] if isinstance(size, list | tuple) else size)
