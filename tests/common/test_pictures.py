"""Opening pictures: bounded in time, and without effect on the rest of the process."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.common import pictures
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import load_picture, why_not


def slow_pictures() -> dict[str, bytes]:
    """Files that take Pillow ten seconds or minutes, some of them tiny."""
    side, tiny = 6000, Image.new("L", (64, 64))

    def saved(suffix: str, image: Image.Image = tiny, **how: object) -> bytes:
        file = io.BytesIO()
        image.save(file, suffix, **how)
        return file.getvalue()

    rle = b"\1\1\0\0" * side  # each line one pixel; the rest is filled byte by byte
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rle), 0, 0, 256, 0)
    bmp = struct.pack("<2sIHHI", b"BM", 1078 + len(rle), 0, 0, 1078) + head + bytes(1024) + rle
    gif, png, jpeg = saved("GIF"), saved("PNG"), saved("JPEG")
    progressive = saved("JPEG", Image.new("RGB", (side, side)), progressive=True)
    last = progressive.rfind(b"\xff\xda")  # a scan that refines what the others gave
    chunk = bytes(4) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    n = 1_000_000
    return {
        "ascii.ppm": b"P3 1500 1500 255\n" + b"7 " * 6_750_000,
        "comment.pgm": b"P5\n#" + b"x" * 4 * n + b"\n64 64 255\n" + bytes(4096),
        "rle.bmp": bmp,
        "comment.gif": gif[:13] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0" + gif[13:],
        "chunks.png": png[:33] + chunk * n + png[33:],
        "segments.jpg": jpeg[:2] + b"\xff\xfe\0\2" * n + jpeg[2:],
        "scans.jpg": progressive[:last] + progressive[last : last + 14] * 2000 + b"\xff\xd9",
    }


def test_the_time_to_decode_a_picture_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_SECONDS", 0.2)
    for name, content in slow_pictures().items():
        (tmp_path / name).write_bytes(content)
        start = time.thread_time()
        with pytest.raises(UserError) as refused:
            load_picture(tmp_path / name)
        assert time.thread_time() - start < 3, name
        reason = "takes over 0.2 seconds to decode; save it again"
        assert str(refused.value) == f"{tmp_path / name}: {reason}"


def test_a_picture_of_endless_width_is_refused(tmp_path: Path) -> None:
    Image.new("1", (2_000_000, 8)).save(tmp_path / "a.png")
    assert why_not(tmp_path / "a.png") == "a side of over 1,000,000 pixels; make it smaller"


def test_the_warnings_of_others_are_left_as_they_are() -> None:
    code = (
        "import warnings; before = list(warnings.filters); import PIL.Image\n"
        "import diffusekrona.common.pictures; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    before = list(warnings.filters)
    why_not(Path(__file__))
    assert warnings.filters == before
