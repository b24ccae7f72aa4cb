"""Pictures without an ICC profile that describe their colours in another way."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import load_alpha, load_picture, picture_size, why_not

D65, P3 = (0.3127, 0.329), (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
STORED, SHOWN = (184, 56, 49), (200, 40, 40)  # a red in Display P3's numbers and in sRGB's


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(path: Path, row: bytes, depth: int, kind: int, **chunks: bytes) -> Path:
    """16 equal rows of 16 pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, kind, 0, 0, 0))]
    parts += [(name.encode(), body) for name, body in chunks.items()]
    parts += [(b"IDAT", zlib.compress((b"\0" + row) * 16)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def gamma(value: float) -> bytes:
    return struct.pack(">I", round(value * 100_000))


def chromaticity(*values: float) -> bytes:
    return b"".join(map(gamma, values))


@pytest.mark.parametrize(
    ("chunks", "want"),
    [
        ({"gAMA": gamma(1)}, (221, 129, 121)),  # light itself
        ({"gAMA": gamma(1 / 2.2)}, STORED),  # what is written beside sRGB's mark
        ({"cHRM": chromaticity(*D65, *P3)}, SHOWN),
        ({"gAMA": gamma(1 / 2.2), "cHRM": chromaticity(*D65, *P3)}, SHOWN),
        ({"sRGB": b"\0", "gAMA": gamma(1), "cHRM": chromaticity(*D65, *P3)}, STORED),
        ({"cICP": bytes([12, 13, 0, 1]), "sRGB": b"\0"}, SHOWN),
        ({"cICP": bytes([1, 13, 0, 1]), "cHRM": chromaticity(*D65, *P3)}, STORED),
        ({"cICP": bytes([1, 8, 0, 1])}, (221, 129, 121)),
        ({"cHRM": chromaticity(*[0.3] * 8)}, STORED),  # no colours at all
        ({"cHRM": bytes(32)}, STORED),
        ({"gAMA": gamma(0)}, STORED),
    ],
)
def test_a_png_describes_its_colours(tmp_path: Path, chunks, want) -> None:
    path = png(tmp_path / "a.png", bytes(STORED) * 16, 8, 2, **chunks)
    assert np.abs(np.array(load_picture(path).getpixel((9, 9))) - want).max() <= 1


def test_grey_has_a_gamma_too(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", bytes([50]) * 16, 8, 0, gAMA=gamma(1))
    assert load_picture(path).getpixel((9, 9)) == (122, 122, 122)
    path = png(tmp_path / "b.png", struct.pack(">H", 50 * 257) * 16, 16, 0, gAMA=gamma(1))
    assert load_picture(path).getpixel((9, 9)) == (122, 122, 122)


@pytest.mark.parametrize(("code", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_pictures_are_refused(tmp_path: Path, code: int, name: str) -> None:
    path = png(tmp_path / "a.png", bytes(STORED) * 16, 8, 2, cICP=bytes([9, code, 0, 1]))
    assert f"an HDR picture ({name})" in str(why_not(path))
    for read in (load_picture, picture_size):
        with pytest.raises(UserError, match=r"a\.png: an HDR picture"):
            read(path)


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key"),
    [
        (16, 0, struct.pack(">HH", 12345, 12346) * 8, struct.pack(">H", 12345)),
        (8, 0, bytes([50, 51] * 8), struct.pack(">H", 50)),
        (4, 0, bytes([0x56] * 8), struct.pack(">H", 5)),
        (2, 0, bytes([0b01100110] * 4), struct.pack(">H", 1)),
        (1, 0, bytes([0b01010101] * 2), struct.pack(">H", 0)),
        (8, 2, bytes([1, 2, 3, 1, 2, 4] * 8), struct.pack(">HHH", 1, 2, 3)),
        (16, 2, struct.pack(">6H", 1000, 0, 9, 9000, 0, 9) * 8, struct.pack(">3H", 1000, 0, 9)),
    ],
)
def test_a_transparent_colour_of_any_depth(tmp_path: Path, depth, kind, row, key) -> None:
    path = png(tmp_path / "a.png", row, depth, kind, tRNS=key)
    alpha = load_alpha(path)
    assert alpha is not None and [alpha.getpixel((x, 8)) for x in range(4)] == [0, 255, 0, 255]
    shown = load_picture(path)
    assert shown.getpixel((0, 8)) == (255, 255, 255)
    assert depth == 1 or shown.getpixel((1, 8)) != (255, 255, 255)


def test_an_avif_says_it_by_numbers(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), STORED).save(tmp_path / "a.avif", quality=95)
    data = (tmp_path / "a.avif").read_bytes()
    assert np.abs(np.array(load_picture(tmp_path / "a.avif").getpixel((9, 9))) - STORED).max() < 4
    at = data.index(b"colrnclx") + 8
    (tmp_path / "a.avif").write_bytes(data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :])
    assert np.abs(np.array(load_picture(tmp_path / "a.avif").getpixel((9, 9))) - SHOWN).max() < 4
    (tmp_path / "a.avif").write_bytes(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])
    assert "HDR" in str(why_not(tmp_path / "a.avif"))


def test_a_heic_says_it_by_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    photo = Image.new("RGB", (64, 64), STORED)
    photo.save(tmp_path / "a.heic", quality=95, color_primaries=12, transfer_characteristics=13)
    assert np.abs(np.array(load_picture(tmp_path / "a.heic").getpixel((9, 9))) - SHOWN).max() < 4


def test_a_camera_marks_adobe_rgb_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: "R03"}})
    Image.new("RGB", (64, 64), STORED).save(tmp_path / "a.jpg", quality=98, exif=exif)
    # Light 0.488, 0.036, 0.027 by the exponent 2.2; red gains 0.398 (red - green) in sRGB.
    want = (214, 52, 45)
    assert np.abs(np.array(load_picture(tmp_path / "a.jpg").getpixel((9, 9))) - want).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "avif", "heic"])
def test_every_format_is_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    """HEIC and AVIF hold the turn beside EXIF, where decoders apply it."""
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    photo = Image.new("RGB", (96, 64), (0, 0, 255))
    photo.paste((255, 0, 0), (0, 0, 32, 64))  # red at the left
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"a.{suffix}"
    photo.save(path, exif=exif.tobytes(), quality=95)
    shown = load_picture(path)
    height, width = shown.height, shown.width
    assert picture_size(path) == (height, width) == ((64, 96) if orientation < 5 else (96, 64))
    edges = {
        "left": (4, height // 2), "right": (width - 5, height // 2),
        "top": (width // 2, 4), "bottom": (width // 2, height - 5),
    }  # fmt: skip
    red = [side for side, place in edges.items() if shown.getpixel(place)[0] > 150]
    want = ["left", "right", "right", "left", "top", "top", "bottom", "bottom"][orientation - 1]
    assert red == [want]


def test_exif_alone_turns_no_heic(tmp_path: Path) -> None:
    """The format's own transformations count (ISO 23008-12); EXIF's copy may be out of date."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "a.heic"
    Image.new("RGB", (96, 64)).save(path, exif=exif)
    assert b"Exif" in path.read_bytes() and b"irot" not in path.read_bytes()
    assert load_picture(path).size == (96, 64)
