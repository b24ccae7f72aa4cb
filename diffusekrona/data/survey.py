"""What a folder would be trained on as it is, and what is wrong with it: nothing is encoded, so it
takes seconds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, shortened
from ..common.pictures import fit_picture, load_picture, opened, picture_size
from .captions import TRIGGER
from .examples import Example, look_through, sizes_of
from .holdout import split_held_out
from .latents import Cropping, crop_places
from .likeness import BLURRED, alike, blur, signature
from .masks import cut_masks
from .settings import DataSettings
from .shares import FolderShare, shares_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

THUMBNAIL = 256  # pixels per side of the crops that are kept for a contact sheet
_ENLARGED = 1.05  # from here on it is worth a note
_CUT_OFF = 0.4  # of the area, likewise: more than a 3:2 photograph loses as a square
_MASK_CELL = 8  # pixels per side of a latent cell
_LEFT_OUT = 0.25  # brightness of what the mask leaves out, on a contact sheet


@dataclass(frozen=True)
class Target:
    """What the pictures are cut to, and who reads the captions.

    Attributes:
        resolution: pixels per side of a square.
        bucket_step: what the sides of buckets are multiples of.
        words_lost: one line about the words of a caption that the base does not read, or None.
    """

    resolution: int
    bucket_step: int = 64
    words_lost: Callable[[str], str | None] = lambda _: None


@dataclass(frozen=True)
class Surveyed:
    """A picture as it would be trained on.

    Attributes:
        name: of its file, with as many folders as distinguish the run's.
        example: with its captions; none if they cannot be read.
        held_out: it is measured with, not trained on.
        pixels: its (height, width); size: what it is cut to.
        crops: each place where it is cut, made smaller, what its mask leaves out darkened; empty
            where they were not asked for.
        blur: from 0 to 1, see `likeness.blur`.
        learned: share of the mask's area that is learned; None without a mask.
        file: what the file holds besides 8-bit sRGB, such as a colour profile.
        notes: what the user may want to change; wrong: what training would stop with.
    """

    name: str
    example: Example
    held_out: bool
    pixels: tuple[int, int]
    size: tuple[int, int]
    crops: tuple[Image.Image, ...]
    blur: float
    learned: float | None
    file: tuple[str, ...]
    notes: tuple[str, ...]
    wrong: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "picture": str(self.example.path),
            "held_out": self.held_out,
            "height": self.pixels[0],
            "width": self.pixels[1],
            "trained_height": self.size[0],
            "trained_width": self.size[1],
            "captions": list(self.example.captions),
            "repeats": self.example.repeats,
            "weight": self.example.weight,
            "regularisation": self.example.regularisation,
            "mask": None if self.example.mask is None else str(self.example.mask),
            "learned": self.learned,
            "blur": round(self.blur, 3),
            "file": list(self.file),
            "notes": list(self.notes),
            "wrong": list(self.wrong),
        }


@dataclass(frozen=True)
class Survey:
    """A folder's pictures, and what there is to say about the folder itself."""

    pictures: list[Surveyed]
    notes: list[str]
    wrong: list[str]

    @property
    def buckets(self) -> list[tuple[tuple[int, int], int]]:
        """Each size (height, width) that is trained at, and its number of pictures."""
        sizes = Counter(one.size for one in self.pictures if not one.held_out)
        return sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))

    @property
    def folders(self) -> list[FolderShare]:
        """Each folder's share of what is trained on."""
        return shares_of([one.example for one in self.pictures if not one.held_out])

    @property
    def stops(self) -> bool:
        """Whether training would stop with an error."""
        return bool(self.wrong) or any(one.wrong for one in self.pictures)

    def as_json(self) -> dict[str, Any]:
        return {
            "pictures": [one.as_json() for one in self.pictures],
            "buckets": [{"height": h, "width": w, "pictures": n} for (h, w), n in self.buckets],
            "folders": [asdict(one) for one in self.folders],
            "notes": self.notes,
            "wrong": self.wrong,
        }


def survey(data: DataSettings, target: Target, seed: int, shown: int = 0) -> Survey:
    """Look at every picture as training would read it.

    Args:
        seed: of the run: of crops, shuffled tags and held-out pictures.
        shown: of how many pictures the crops are kept.

    Raises:
        UserError: there is nothing to look at.
    """
    everything, findings = look_through(data, seed)
    trained, held_out = split_held_out(everything, data, seed)
    wrong_of: dict[Path, list[str]] = {}
    for finding in findings:
        if finding.picture is not None:
            wrong_of.setdefault(finding.picture, []).append(finding.text)
    pictures: list[Surveyed] = []
    signatures: list[np.ndarray] = []
    for examples, held in ((trained, False), (held_out, True)):
        sizes = sizes_of(examples, target.resolution, target.bucket_step)
        for number, (example, size) in enumerate(zip(examples, sizes, strict=True)):
            cropping = Cropping(example.center_crop or held, seed=seed)
            keep = len(pictures) < shown
            wrong = wrong_of.get(example.path, [])
            one, own = _look_at(example, size, cropping, number, held, keep, target, wrong)
            pictures.append(one)
            signatures.append(own)
    names = _names([one.example.path for one in pictures])
    pictures = [replace(one, name=name) for one, name in zip(pictures, names, strict=True)]
    of_folder = [finding for finding in findings if finding.picture is None]
    return Survey(
        _with_copies(pictures, signatures),
        [finding.text for finding in of_folder if not finding.fatal],
        [finding.text for finding in of_folder if finding.fatal],
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, below the folder that all have in common."""
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [str(path.absolute().relative_to(common)) for path in paths]


def _look_at(
    example: Example,
    size: tuple[int, int],
    cropping: Cropping,
    number: int,
    held_out: bool,
    keep: bool,
    target: Target,
    wrong: Sequence[str],
) -> tuple[Surveyed, np.ndarray]:
    """One picture, and its signature."""
    pixels = picture_size(example.path)
    have = picture_size(example.path, max(size))  # as training decodes it
    picture = load_picture(example.path, min_size=max(size))
    places = crop_places(have, size, cropping, number)
    crops = [fit_picture(picture, size, place)[0] for place in places] if keep else []
    learned, wrong = None, list(wrong)
    if example.mask is not None:
        cells = (max(1, size[0] // _MASK_CELL), max(1, size[1] // _MASK_CELL))
        try:
            parts = cut_masks(example.mask, example.path, have, size, places, False, cells)
            learned = sum(part.mean().item() for part in parts) / len(parts)
            crops = [_darkened(crop, part) for crop, part in zip(crops, parts, strict=bool(crops))]
        except UserError as error:
            wrong.append(str(error))
    for crop in crops:
        crop.thumbnail((THUMBNAIL, THUMBNAIL))
    scale = max(size[0] / pixels[0], size[1] / pixels[1])
    # At the size that is trained at, but not enlarged, which would count as blur.
    within = (max(1, round(size[0] / max(scale, 1))), max(1, round(size[1] / max(scale, 1))))
    blurred = blur(fit_picture(picture, within)[0])
    notes = [
        *_size_notes(pixels, size, scale, example.aspect_ratio_buckets),
        *([f"blurred ({blurred:.2f})"] if blurred > BLURRED else []),
        *_mask_notes(learned),
        *_caption_notes(example, target),
    ]
    file = _file_facts(example.path)
    one = Surveyed(
        example.path.name, example, held_out, pixels, size, tuple(crops), blurred, learned, file,
        tuple(notes), tuple(wrong),
    )  # fmt: skip
    return one, signature(picture)


def _darkened(crop: Image.Image, mask: Any) -> Image.Image:
    """A crop (height, width) with the cells of its mask (1, h, w) as bright as they are learned."""
    from PIL import Image

    values = (mask[0] * (1 - _LEFT_OUT) + _LEFT_OUT) * 255
    light = Image.fromarray(values.byte().numpy()).resize(crop.size, Image.Resampling.NEAREST)
    return Image.composite(crop, Image.new("RGB", crop.size), light)


def _size_notes(
    pixels: tuple[int, int], size: tuple[int, int], scale: float, buckets: bool
) -> list[str]:
    notes = []
    if scale > _ENLARGED:
        notes.append(f"too small: enlarged {scale:.1f} times")
    lost = 1 - size[0] * size[1] / (pixels[0] * pixels[1] * scale**2)
    if lost > _CUT_OFF:
        hint = "" if buckets else "; see --aspect_ratio_buckets"
        notes.append(f"{lost:.0%} of the picture is outside each crop{hint}")
    return notes


def _mask_notes(learned: float | None) -> list[str]:
    if learned is not None and learned < 0.005:
        return ["the mask leaves out everything"]
    if learned is not None and learned > 0.995:
        return ["the mask leaves out nothing"]
    return []


def _caption_notes(example: Example, target: Target) -> list[str]:
    captions, trigger = example.captions, example.trigger
    lost = filter(None, map(target.words_lost, dict.fromkeys(captions)))
    notes = [shortened(line, 160) for line in lost]
    if trigger and captions and not any(trigger in caption for caption in captions):
        notes.append(f"caption without {TRIGGER}, here {trigger!r}")
    return notes


def _file_facts(path: Path) -> tuple[str, ...]:
    """What is converted when a picture is read: profile, mode, orientation."""
    facts = []
    with opened(path) as image:
        if profile := image.info.get("icc_profile"):
            facts.append(_profile_name(profile))
        if image.mode not in ("RGB", "L", "P"):
            facts.append(image.mode)
        if image.getexif().get(0x0112, 1) != 1:
            facts.append("turned by EXIF")
        if getattr(image, "n_frames", 1) > 1:
            facts.append("animated: first frame")
    return tuple(facts)


def _profile_name(profile: bytes) -> str:
    import io

    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return "broken colour profile"
    return " ".join(name.split()) or "colour profile without a name"


def _with_copies(pictures: Sequence[Surveyed], signatures: Sequence[np.ndarray]) -> list[Surveyed]:
    """The pictures with a note on each that is nearly the same as an earlier one."""
    copies = alike(signatures)
    found = []
    for number, one in enumerate(pictures):
        if number in copies:
            earlier, mirrored = copies[number]
            words = f"nearly the same as {pictures[earlier].name}" + ", mirrored" * mirrored
            one = replace(one, notes=(*one.notes, words))
        found.append(one)
    return found
