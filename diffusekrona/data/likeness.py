"""How sharp a picture is, and which pictures show nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

BLURRED = 0.6  # of `blur`: photographs that are sharp lie between 0.1 and 0.5
ALIKE = 0.95  # cosine of signatures: brighter, smaller and slightly cropped copies lie above it
_SIDE = 16
_WINDOW = 9


def blur(image: Image.Image) -> float:
    """How blurred a picture is, from 0 (sharp) to 1: the share of its contrast between neighbouring
    pixels that blurring it once more leaves (Crete et al., "The blur effect", 2007). 0 for a
    picture of a single colour, of which nothing can be said."""
    import numpy as np

    grey = np.asarray(image.convert("L"), dtype=np.float64)
    shares = []
    for values in (grey, grey.T):
        padded = np.pad(values, ((_WINDOW // 2, _WINDOW // 2), (0, 0)), mode="edge")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
        blurred = (sums[_WINDOW:] - sums[:-_WINDOW]) / _WINDOW
        before = np.abs(np.diff(values, axis=0))
        lost = np.maximum(0, before - np.abs(np.diff(blurred, axis=0)))
        if total := before.sum():
            shares.append(1 - lost.sum() / total)
    return float(max(shares, default=0.0))


def signature(image: Image.Image) -> np.ndarray:
    """A picture in few numbers (768,), of length 1: its colours on a coarse grid, without their
    mean. The cosine of two says how alike they are."""
    import numpy as np

    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def alike(signatures: Sequence[np.ndarray]) -> dict[int, tuple[int, bool]]:
    """The pictures that are nearly the same as an earlier one.

    Returns:
        Number of the later picture → number of the earlier one that it is most like, and whether
        it is mirrored.
    """
    import numpy as np

    found: dict[int, tuple[int, bool]] = {}
    if not signatures:
        return found
    all_of_them = np.stack(signatures)
    for number in range(1, len(signatures)):
        own = all_of_them[number]
        mirrored = own.reshape(_SIDE, _SIDE, 3)[:, ::-1].ravel()
        both = all_of_them[:number] @ np.stack([own, mirrored], axis=1)
        earlier, side = np.unravel_index(int(both.argmax()), both.shape)
        if both[earlier, side] >= ALIKE:
            found[number] = int(earlier), bool(side)
    return found
