"""A bundled base says that it draws no photographs, where it is given some."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.data.photographs import report_photographs


@pytest.mark.parametrize(
    ("base", "size", "said"),
    [("pocket", 1200, 1), ("pocket-sdxl", 1200, 1), ("pocket", 256, 0), ("/my/model", 1200, 0)],
)
def test_one_line_for_photographs_on_a_bundled_base(
    base: str, size: int, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    for path in paths:
        Image.new("RGB", (size, size // 2)).save(path)
    with caplog.at_level(logging.WARNING, "diffusekrona"):
        report_photographs(base, paths)
    assert len(caplog.records) == said
    assert all("toys only" in record.getMessage() for record in caplog.records)
