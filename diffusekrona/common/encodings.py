"""What the numbers of a picture without an ICC profile stand for, as an ICC profile.

    PNG          cICP, else an ICC profile, else sRGB, else gAMA and cHRM, as its specification says
    AVIF, HEIC   an ICC profile, else nclx
    all          else EXIF's mark of Adobe RGB

Numbers of primaries and transfer functions are those of ITU-T H.273. The curves of video (BT.709,
BT.2020) are read as sRGB's, as browsers read them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from .errors import UserError

if TYPE_CHECKING:
    import numpy as np

Primaries = tuple[float, ...]  # x and y of white, red, green and blue
_D65, _D50 = (0.3127, 0.329), (0.34567, 0.3585)
_SRGB = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_ADOBE = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_ADOBE_GAMMA = 563 / 256
_PRIMARIES: Mapping[int, Primaries] = {
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_EXPONENTS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}  # light = number ** exponent; others are sRGB's
_HDR = {16: "PQ", 18: "HLG"}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of ICC's function type 3
_HEADER_BYTES = 1 << 16  # of a file, in which its description of colours begins
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow's name of grey of few bits to its step of 255
_EXIF, _INTEROPERABILITY = 0x8769, 0xA005


def add_profile(image: Image.Image, file: BinaryIO) -> None:
    """Enter into `image.info` the profile that says what its numbers stand for, if one is needed.

    Args:
        image: just opened, not yet decoded.
        file: what it was opened from; its position is kept.

    Raises:
        UserError: an HDR picture; the reason alone, without the path.
    """
    code = _code(image, file)
    if code is not None and (image.format == "PNG" or "icc_profile" not in image.info):
        primaries, transfer = code
        if transfer in _HDR:
            raise UserError(f"an HDR picture ({_HDR[transfer]}); save it in SDR, such as sRGB")
        _enter(image, _PRIMARIES.get(primaries, _SRGB), _EXPONENTS.get(transfer))
    elif image.info.get("icc_profile") or "srgb" in image.info:
        pass
    elif {"gamma", "chromaticity"} & image.info.keys():
        gamma = image.info.get("gamma", 0)
        usual = not 0.1 < gamma < 10 or abs(gamma - 1 / 2.2) < 0.05 / 2.2  # written beside sRGB
        primaries = image.info.get("chromaticity", _SRGB)
        _enter(image, primaries, None if usual else 1 / gamma)
    elif _is_adobe(image):
        _enter(image, _ADOBE, _ADOBE_GAMMA)


def scale_transparency(image: Image.Image) -> None:
    """A PNG's transparent colour in the numbers that Pillow decodes to, not in the file's.

    Of 16-bit colours Pillow keeps the upper byte, so theirs is made transparent.
    """
    if not isinstance(image, PngImageFile) or not image.tile:
        return
    key, raw = image.info.get("transparency"), image.tile[0][3]
    if raw == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif raw in _GREY_STEPS and isinstance(key, int):
        image.info["transparency"] = key * _GREY_STEPS[raw]


def _code(image: Image.Image, file: BinaryIO) -> tuple[int, int] | None:
    """(primaries, transfer) of PNG's cICP or of nclx; None where the file has neither."""
    if image.format == "HEIF":
        nclx: Mapping[str, Any] = image.info.get("nclx_profile") or {}
        if not nclx:
            return None
        return int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
    mark = {"PNG": b"\0\0\0\4cICP", "AVIF": b"colrnclx"}.get(image.format or "")
    if mark is None:
        return None
    at = file.tell()
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    file.seek(at)
    if image.format == "PNG":
        head = head[: max(head.find(b"IDAT"), 0)]
    start = head.find(mark) + len(mark)
    if start < len(mark) or len(head) < start + 4:
        return None
    return (head[start], head[start + 1]) if image.format == "PNG" else _two(head, start)


def _two(data: bytes, start: int) -> tuple[int, int]:
    primaries, transfer = struct.unpack_from(">HH", data, start)
    return primaries, transfer


def _is_adobe(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB, as cameras do that embed no profile."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # to look for it Pillow would decode the picture
    try:
        exif = image.getexif()
        return exif.get_ifd(_EXIF) != {} and exif.get_ifd(_INTEROPERABILITY).get(1) == "R03"
    except Exception:  # metadata is broken more often than pictures are
        return False


def _enter(image: Image.Image, primaries: Primaries, exponent: float | None) -> None:
    if exponent is None and tuple(primaries) == _SRGB:
        image.info.pop("icc_profile", None)  # cICP comes before it
        return
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    profile = _profile(None if grey else primaries, exponent)
    if profile is not None:
        image.info["icc_profile"] = profile


def _profile(primaries: Primaries | None, exponent: float | None) -> bytes | None:
    """An ICC profile of given primaries, None for grey, and of light = number ** exponent, None for
    sRGB's curve. None for primaries that span no colours."""
    if exponent is None:
        curve = b"para\0\0\0\0\0\3\0\0" + _fixed(*_SRGB_CURVE)
    else:
        curve = b"para\0\0\0\0\0\0\0\0" + _fixed(exponent)
    name = "own colours (no ICC profile)".encode("utf-16-be")
    title = struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(name), 28) + name
    parts = {b"desc": title, b"wtpt": _xyz(0.9642, 1, 0.8249)}
    if primaries is None:
        parts[b"kTRC"] = curve
    else:
        columns = _colorants(primaries)
        if columns is None:
            return None
        for colour, column in zip(b"rgb", columns.T, strict=True):
            parts[bytes([colour]) + b"XYZ"] = _xyz(*column)
            parts[bytes([colour]) + b"TRC"] = curve
    at, table, body = 128 + 4 + 12 * len(parts), b"", b""
    for tag, content in parts.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    space = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4xI4s4s4s", at + len(body), 0x04300000, b"mntr", space, b"XYZ ")
    head = (head + b"\0" * 12 + b"acsp").ljust(68, b"\0") + _fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


def _colorants(primaries: Primaries) -> np.ndarray | None:
    """XYZ of red, green and blue in the columns, adapted to D50 by Bradford's matrix."""
    import numpy as np

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    try:
        white, *colours = (xyz(*primaries[i : i + 2]) for i in (0, 2, 4, 6))
        columns = np.stack(colours, axis=1)
        columns = columns * np.linalg.solve(columns, white)
        cones = (bradford @ xyz(*_D50)) / (bradford @ white)
        adapted = np.linalg.solve(bradford, cones[:, None] * (bradford @ columns))
    except (ZeroDivisionError, TypeError, np.linalg.LinAlgError):
        return None
    return adapted if np.isfinite(adapted).all() and np.abs(adapted).max() < 4 else None


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(*values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)
