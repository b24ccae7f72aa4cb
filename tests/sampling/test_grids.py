"""Labelled grids and the recipes inside PNG files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from diffusekrona.common.errors import UserError
from diffusekrona.sampling.grids import Grid, labelled_grid, read_recipe, save_png

RED, BLUE = (220, 30, 30), (30, 40, 220)


def colour_box(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Where `colour` stands in the grid: left, top, right, bottom."""
    difference = ImageChops.difference(grid, Image.new("RGB", grid.size, colour))
    return difference.convert("L").point(lambda value: 255 if value < 3 else 0).getbbox()


def square(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_small_pictures_are_enlarged_a_whole_number_of_times() -> None:
    grid = labelled_grid([[square(RED), square(BLUE)]])
    left, top, right, bottom = colour_box(grid, RED) or (0, 0, 0, 0)
    assert (right - left, bottom - top) == (192, 192)
    assert (colour_box(grid, BLUE) or (0,))[0] > right  # a gap between them
    assert grid.getpixel((0, 0)) == (255, 255, 255)
    large = colour_box(labelled_grid([[square(RED, 1024, 1024)]]), RED) or (0, 0, 0, 0)
    assert large[2] - large[0] == 512
    exact = colour_box(labelled_grid([[square(RED)]], cell=64), RED) or (0, 0, 0, 0)
    assert exact[2] - exact[0] == 64


def test_proportions_are_kept_and_blank_cells_are_white() -> None:
    grid = labelled_grid([[square(RED, 300, 100), square(BLUE, 100, 200)], [None], []], cell=200)
    left, top, right, bottom = colour_box(grid, RED) or (0, 0, 0, 0)
    assert (right - left, bottom - top) == (200, 67)
    left, top, right, bottom = colour_box(grid, BLUE) or (0, 0, 0, 0)
    assert (right - left, bottom - top) == (100, 200)
    below = grid.crop((0, bottom, grid.width, grid.height))
    assert below.height > 100 and below.getcolors() == [(below.width * below.height, (255,) * 3)]


def test_labels_take_room_of_their_own() -> None:
    bare = labelled_grid([[square(RED), square(BLUE)]])
    named = labelled_grid([[square(RED), square(BLUE)]], ["row"], ["one", "two"], "title")
    assert named.width > bare.width and named.height > bare.height
    left, top, _, _ = colour_box(named, RED) or (0, 0, 0, 0)
    for region in ((0, top, left, named.height), (0, 0, named.width, top)):
        assert colour_box(named.crop(region), (255, 255, 255)) is not None
        assert len(named.crop(region).getcolors() or []) > 8  # text, and with soft edges
    fewer = labelled_grid([[square(RED)], [square(BLUE)]], row_labels=["only the first"])
    assert fewer.height > fewer.width


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="picture"):
        labelled_grid([[None]])
    with pytest.raises(ValueError, match="picture"):
        labelled_grid([])
    with pytest.raises(ValueError, match="2 row labels for 1 rows"):
        labelled_grid([[square(RED)]], row_labels=["a", "b"])


@settings(max_examples=40)
@given(st.text(max_size=60), st.text(max_size=200), st.text(max_size=60), st.integers(8, 80))
def test_no_label_crashes_or_spills(row: str, column: str, title: str, cell: int) -> None:
    plain = labelled_grid([[square(RED)]], cell=cell)
    grid = labelled_grid([[square(RED)]], [row], [column], title, cell=cell)
    assert grid.width <= plain.width + 200 and grid.height <= plain.height + 200
    box, size = colour_box(grid, RED), colour_box(plain, RED)
    assert box and size and box[2] - box[0] == size[2] - size[0]  # no text over the picture


@pytest.mark.parametrize("label", ["été 狗 🐶 ⊗ — ×", "\ud800", "\n\t\0", "x" * 5000, "Ω " * 900])
def test_odd_labels(label: str) -> None:
    labelled_grid([[square(RED)] * 2] * 2, [label] * 2, [label] * 2, label)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_any_mode_is_shown(mode: str) -> None:
    grid = labelled_grid([[square((255, 255, 255)).convert(mode)]], cell=32)
    assert grid.mode == "RGB" and grid.getcolors() == [(grid.width * grid.height, (255,) * 3)]


def test_transparent_parts_are_white() -> None:
    grid = labelled_grid([[Image.new("RGBA", (32, 32), (0, 0, 0, 0))]])
    assert grid.getcolors() == [(grid.width * grid.height, (255, 255, 255))]


def test_the_recipe_survives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    recipe: dict[str, Any] = {
        "prompt": "a sks dog\nété 狗",
        "negative_prompt": "blurry",
        "steps": 50,
        "guidance": 7.0,
        "seed": 3,
        "adapters": [["a.safetensors", 0.5]],
        "folder": Path("x"),
        "refiner": None,
    }
    save_png(square(RED), path, recipe)
    assert read_recipe(path) == {**recipe, "folder": "x"}
    assert os.listdir(path.parent) == ["a.png"]
    with Image.open(path) as image:
        image.load()
        text = image.info["parameters"]
    assert text.startswith("a sks dog\nété 狗\nNegative prompt: blurry\nSteps: 50, CFG scale: 7.0")
    assert "refiner" not in text
    save_png(square(BLUE), path)
    assert read_recipe(path) is None


def test_reading_a_recipe_from_something_else(tmp_path: Path) -> None:
    square(RED).save(tmp_path / "a.jpg")
    assert read_recipe(tmp_path / "a.jpg") is None
    (tmp_path / "b.png").write_text("no picture")
    for name in ("b.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_recipe(tmp_path / name)


def test_a_full_disk_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(square(RED), path, {"seed": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left on the disk holding .*a\.png"):
        save_png(square(BLUE), path, {"seed": 2})
    assert read_recipe(path) == {"seed": 1}
    assert os.listdir(tmp_path) == ["a.png"]


def test_photos_stand_in_the_first_column() -> None:
    rows = tuple((f"step {n}", (square(BLUE), None)) for n in range(3))
    grid = Grid("a title", ("one", "two"), rows)
    with_photos = grid.with_photos([square(RED), square((0, 200, 0))])
    assert with_photos.columns == ("photos", "one", "two")
    assert [pictures[0].getpixel((0, 0)) for _, pictures in with_photos.rows] == [
        RED, (0, 200, 0), RED,
    ]  # fmt: skip
    assert colour_box(with_photos.image(), RED)[0] < colour_box(with_photos.image(), BLUE)[0]
    assert grid.with_photos([]) is grid
