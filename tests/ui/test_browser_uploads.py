"""Uploads in a real browser: what is refused is said, and nothing of it is kept."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from browsing import CHROMIUM, Server, write
from PIL import Image
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.slow,
]


def bomb() -> bytes:
    """A small PNG that claims to be 60,000 pixels a side."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pieces = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in pieces
    )


def test_uploads_that_are_refused(page: Page, server: Server, tmp_path: Path) -> None:
    """Too large, a bomb, no picture: each is said, nothing is written; a path is only a name."""
    large = tmp_path / "large.png"
    with open(large, "wb") as file:
        file.truncate(41_000_000)

    def everything() -> set[Path]:
        """Beside the server's folder, too; but other tests' runs may still write into theirs."""
        return {*server.folder.rglob("*"), *server.folder.parent.iterdir()}

    before = everything()
    write(page, page.get_by_role("combobox", name="subject"), "refused")
    page.keyboard.press("Tab")
    upload, said = page.locator("#upload input[type=file]"), page.locator("#refused")
    upload.set_input_files(
        [
            {"name": "bomb.png", "mimeType": "image/png", "buffer": bomb()},
            {"name": "page.png", "mimeType": "image/png", "buffer": b"<script>alert(1)</script>"},
        ]
    )
    expect(said).to_contain_text("bomb.png: ")
    expect(said).to_contain_text("page.png: ")
    upload.set_input_files(large)
    words = re.compile("exceed the maximum", re.I)
    expect(page.get_by_text(words).first).to_be_visible()
    assert everything() == before
    red = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(red, "PNG")
    picture: Any = {"name": "../../x.png", "mimeType": "image/png", "buffer": red.getvalue()}
    sent = page.request.post(  # the browser's own dialog gives no such name
        f"{server.address}gradio_api/upload", multipart={"files": picture}
    )
    assert sent.ok and not list(server.folder.parent.rglob("x.png"))
    assert page.complaints == []
