"""Pictures and captions: every odd thing that people keep in a folder of photographs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from diffusekrona.common import pictures as pictures_module
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import (
    content_key,
    fit_picture,
    load_picture,
    to_image,
    to_tensor,
    why_not,
)
from diffusekrona.data.caption_files import read_captions
from diffusekrona.data.folder import (
    batches,
    bucket_sizes,
    find_pictures,
    nearest_bucket,
    unread_captions,
)

REPOSITORY = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (30, 40, 220)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A picture with red top left, green top right, and blue below: it shows how it was turned."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    return image


def near(pixel: object, colour: tuple[int, int, int], within: int = 25) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))


def looks_like_photo(image: Image.Image, within: int = 25) -> bool:
    w, h = image.size
    return (
        near(image.getpixel((w // 4, h // 4)), RED, within)
        and near(image.getpixel((3 * w // 4, h // 4)), GREEN, within)
        and near(image.getpixel((w // 2, 3 * h // 4)), BLUE, within)
    )


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder as people have them: four good pictures among everything else."""
    folder = tmp_path / "messy"
    (folder / "generated").mkdir(parents=True)
    photo().save(folder / "generated" / "0.png")
    photo().save(folder / "a.JPG", quality=95)
    photo().convert("CMYK").save(folder / "b.jpeg", quality=95)
    photo().save(folder / "c.png")
    (folder / "d.webp").symlink_to(folder / "c.png")
    whole = (folder / "a.JPG").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture at all")
    (folder / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    for junk in (".DS_Store", "._a.JPG", "Thumbs.db", "notes.pdf"):
        (folder / junk).write_bytes(b"\0\1\2")
    (folder / "a.txt").write_text("a caption")
    (folder / "metadata.jsonl").write_text("")
    return folder


def test_find_pictures_takes_the_good_and_names_the_rest(messy: Path) -> None:
    pictures, skipped = find_pictures(messy)
    assert [p.name for p in pictures] == ["a.JPG", "b.jpeg", "c.png", "d.webp"]
    reasons = dict(line.split(": ", 1) for line in skipped)
    assert set(reasons) == {
        *("truncated.jpg", "text.jpg", "empty.png", "dot.png", "dangling.png", "pipe.png"),
        *("generated", ".DS_Store", "._a.JPG", "Thumbs.db", "notes.pdf"),
    }
    assert "1×1" in reasons["dot.png"] and "hidden" in reasons[".DS_Store"]
    assert "folder" in reasons["generated"] and "decoded" in reasons["truncated.jpg"]
    assert all("\n" not in line for line in skipped)


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "junk", "captions", "nul", "long"])
def test_a_folder_without_pictures_is_a_user_error_that_names_it(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "subject"
    if kind == "file":
        folder.touch()
    elif kind in ("nul", "long"):
        folder = tmp_path / ("a\0b" if kind == "nul" else "x" * 5000)
    elif kind != "missing":
        folder.mkdir()
    if kind == "junk":
        (folder / "Thumbs.db").write_bytes(b"\0")
    if kind == "captions":
        (folder / "a.txt").write_text("hello")
    with pytest.raises(UserError) as caught:
        find_pictures(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    if kind == "junk":
        assert "Thumbs.db" in str(caught.value)


def test_pictures_one_folder_down_are_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    photo().save(tmp_path / "input" / "a.png")
    with pytest.raises(UserError, match="holds 1: give that folder"):
        find_pictures(tmp_path)


def test_the_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    photo().save(tmp_path / "a.png")
    assert find_pictures(Path("~"))[0] == [tmp_path / "a.png"]


def test_a_decompression_bomb_is_refused_and_large_photos_are_not(tmp_path: Path) -> None:
    Image.new("1", (15000, 15000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (5472, 3648), RED).save(tmp_path / "big.jpg", quality=50)
    pictures, skipped = find_pictures(tmp_path)
    assert [p.name for p in pictures] == ["big.jpg"]
    assert skipped == ["bomb.png: over 180 million pixels; make it smaller"]
    image = load_picture(tmp_path / "big.jpg", min_size=512)
    assert min(image.size) >= 1024 and image.width < 5472  # decoded at a part of its size
    fitted, original, _ = fit_picture(image, (512, 512))
    assert fitted.size == (512, 512) and original == (3648, 5472)


def test_warnings_about_size_never_reach_the_user(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("1", (11000, 9000)).save(tmp_path / "a.png")
    find_pictures(tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpositions
    image = photo(640, 480)
    if orientation in undo:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, quality=95)
    for hint in (None, 100):
        loaded = load_picture(path, hint)
        assert looks_like_photo(loaded)
        assert fit_picture(loaded, (64, 64))[1] == (480, 640)
        assert (loaded.size == (640, 480)) == (hint is None or suffix != "jpg")
        assert "exif" not in loaded.info


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    import numpy as np

    image = photo()
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.quantize(16).save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "opaque.png")
    image.save(tmp_path / "a.gif")
    image.save(tmp_path / "a.bmp")
    for path in sorted(tmp_path.iterdir()):
        loaded = load_picture(path)
        assert loaded.mode == "RGB" and looks_like_photo(loaded), path.name

    ramp = np.linspace(0, 1, 64)[None, :].repeat(16, 0)
    grey = (ramp * 255).round().astype(np.uint8)
    sixteen = (ramp * 65535).round().astype(np.uint16)
    files = {
        "grey.jpg": Image.fromarray(grey),
        "sixteen.png": Image.fromarray(sixteen),
        "sixteen.tif": Image.fromarray(sixteen),
        "int.tif": Image.fromarray(sixteen.astype(np.int32)),
        "float.tif": Image.fromarray(ramp.astype(np.float32)),
    }
    for name, picture in files.items():
        picture.save(tmp_path / name)
        loaded = load_picture(tmp_path / name)
        assert loaded.mode == "RGB"
        assert np.abs(np.asarray(loaded)[..., 1].astype(int) - grey).max() <= 2, name
    dark = Image.fromarray(np.full((16, 16), 2570, np.uint16))  # dark stays dark: 2570/257 = 10
    dark.save(tmp_path / "dark.png")
    assert load_picture(tmp_path / "dark.png").getpixel((3, 3)) == (10, 10, 10)
    Image.new("1", (16, 16), 1).save(tmp_path / "bits.png")
    assert load_picture(tmp_path / "bits.png").getpixel((3, 3)) == (255, 255, 255)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((*RED, 255), (0, 0, 16, 32))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "la.png")
    clear.save(tmp_path / "rgba.webp", lossless=True)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([*RED, 0, 0, 0])
    palette.paste(0, (0, 0, 16, 32))
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette_bytes.png", transparency=b"\xff\x00")
    palette.save(tmp_path / "palette.gif", transparency=1)
    Image.new("RGB", (32, 32), BLUE).save(tmp_path / "key.png", transparency=BLUE)
    for path in sorted(tmp_path.iterdir()):
        loaded = load_picture(path)
        assert loaded.mode == "RGB" and loaded.getpixel((24, 8)) == (255, 255, 255), path.name
        if path.stem != "key" and path.stem != "la":
            assert near(loaded.getpixel((8, 8)), RED), path.name


@pytest.mark.parametrize("name", ["truncated.jpg", "text.jpg", "empty.png", "nowhere.png"])
def test_a_broken_file_is_a_user_error_that_names_it(messy: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        load_picture(messy / name)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["jpg", "png", "webp", "gif", "tif"]))
def test_damaged_bytes_give_a_picture_or_a_user_error(seed: int, suffix: str) -> None:
    import tempfile

    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        photo().save(path)
        data = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: dice.randint(1, len(data))])
        try:
            assert load_picture(path).mode == "RGB"
        except UserError as error:
            assert str(path) in str(error)


def display_p3() -> bytes:
    """Display P3's profile, the colours of phone cameras, made from its published primaries."""
    import struct

    def chunk(kind: bytes, *values: float) -> bytes:
        numbers = b"".join(struct.pack(">i", round(v * 65536)) for v in values)
        return kind + b"\0" * 4 + numbers

    curve = b"para\0\0\0\0\0\3\0\0" + b"".join(
        struct.pack(">i", round(v * 65536))
        for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    )
    parts = {
        b"wtpt": chunk(b"XYZ ", 0.9642, 1.0, 0.8249),
        b"rXYZ": chunk(b"XYZ ", 0.51512, 0.2412, -0.00105),
        b"gXYZ": chunk(b"XYZ ", 0.29198, 0.69225, 0.04189),
        b"bXYZ": chunk(b"XYZ ", 0.1571, 0.06657, 0.78407),
        **{name: curve for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    at, table, body = 128 + 4 + 12 * len(parts), b"", b""
    for name, content in parts.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">iii", 63190, 65536, 54061)
    head = head.ljust(128, b"\0")
    return head + struct.pack(">I", len(parts)) + table + body


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_colours_are_those_of_the_pictures_profile(suffix: str, tmp_path: Path) -> None:
    # Display P3 calls the colour so that sRGB calls (200, 40, 40).
    path = tmp_path / f"a.{suffix}"
    photo = Image.new("RGB", (64, 64), (184, 56, 49))
    photo.save(
        path, icc_profile=display_p3(), **{"quality": 98} if suffix in ("jpg", "webp") else {}
    )
    near = np.abs(np.array(load_picture(path).getpixel((30, 30))) - (200, 40, 40))
    assert near.max() <= (1 if suffix in ("png", "tif") else 5)
    rgba = photo.convert("RGBA")
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "b.png", icc_profile=display_p3())
    image = load_picture(tmp_path / "b.png")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.array(image.getpixel((30, 30))) - (200, 40, 40)).max() <= 1


@pytest.mark.parametrize("profile", [b"junk", b"", "srgb", "grey"])
def test_a_profile_that_says_nothing_changes_nothing(profile, tmp_path: Path) -> None:
    if profile == "srgb":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif profile == "grey":  # of another kind of picture
        profile = display_p3().replace(b"RGB ", b"GRAY")
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(numbers).save(tmp_path / "a.png", icc_profile=profile)
    assert (np.asarray(load_picture(tmp_path / "a.png")) == numbers).all()


def test_only_the_formats_of_the_suffixes_are_opened(tmp_path: Path, monkeypatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_bytes(eps)
    assert why_not(tmp_path / "photo.jpg") == "broken or not a picture (cannot be decoded)"


def test_the_bytes_of_a_decoded_picture_are_bounded(tmp_path: Path, monkeypatch) -> None:
    for mode in ("I;16", "RGBA", "RGB"):
        Image.new(mode, (100, 100)).save(tmp_path / "a.png")
        monkeypatch.setattr(pictures_module, "MOST_BYTES", 100 * 100 * 5)
        assert (why_not(tmp_path / "a.png") is None) == (mode == "RGB")
        monkeypatch.setattr(pictures_module, "MOST_BYTES", 10**9)
        assert why_not(tmp_path / "a.png") is None


def test_a_large_deep_picture_needs_no_more_than_it_must(tmp_path: Path) -> None:
    Image.fromarray(np.full((6000, 6000), 30_000, np.uint16)).save(tmp_path / "a.png")
    code = (
        "import pathlib; from diffusekrona.common.cpu_memory import peak_resident\n"
        "from diffusekrona.common.pictures import load_picture\n"
        "before = peak_resident()\n"
        f"image = load_picture(pathlib.Path({str(tmp_path / 'a.png')!r}))\n"
        "print(peak_resident() - before, image.getpixel((9, 9)))"
    )
    reported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    grown, _, colour = reported.stdout.partition(" ")
    assert colour.strip() == "(117, 117, 117)"
    assert int(grown) < 450e6  # 216 MB of pixels; it was 1.2 GB


def test_heic_is_read_where_it_can_be(tmp_path: Path, monkeypatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 64), RED).save(tmp_path / "a.heic", quality=95)
    assert find_pictures(tmp_path)[0] == [tmp_path / "a.heic"]
    pixel = load_picture(tmp_path / "a.heic").getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) < 9
    monkeypatch.setattr(pictures_module, "_register_heif", lambda: False)
    assert "pip install pillow-heif" in why_not(tmp_path / "a.heic")


# Captions


def test_captions_of_other_tools_are_read_or_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo().save(tmp_path / name)
    (tmp_path / "a.caption").write_text("from kohya\n")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "B.txt").write_text("another name")
    pictures, skipped = find_pictures(tmp_path)
    assert read_captions(tmp_path, pictures, "prompt") == ["from kohya", "prompt"]
    assert skipped == ["b.json: not read; captions come from .txt and .caption files"]
    (line,) = unread_captions(tmp_path, pictures)
    assert line == "B.txt: a caption, but no picture is called B"
    (tmp_path / "B.txt").rename(tmp_path / f"{pictures[0].name}.txt")
    (line,) = unread_captions(tmp_path, pictures)
    named = f"the caption of {pictures[0].name} is called {pictures[0].stem}.txt"
    assert line == f"{pictures[0].name}.txt: not read; {named}"


def test_captions_from_text_files_then_metadata_then_the_prompt(tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.jpg", "b.png", "c.jpg", "d.jpg", "é.jpg")]
    (tmp_path / "a.txt").write_bytes("\ufeffa sks dog\r\n  on a été\n".encode())
    (tmp_path / "b.txt").write_text(" \n")
    lines = [
        {"file_name": "a.jpg", "text": "not this one"},
        {"file_name": "./b.png", "caption": "from the table"},
        {"file_name": "c.jpg", "prompt": ""},
        {"file_name": "e\u0301.jpg", "text": "accents \u2028 agree"},
        {"file_name": "gone.jpg", "text": "of a picture removed since"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    assert read_captions(tmp_path, pictures, "a sks dog") == [
        *("a sks dog on a été", "from the table", "a sks dog", "a sks dog", "accents agree")
    ]
    with pytest.raises(UserError, match=r"c\.jpg"):
        read_captions(tmp_path, pictures, None)
    with pytest.raises(UserError, match=r"c\.jpg"):
        read_captions(tmp_path, pictures, "  ")


@pytest.mark.parametrize(
    "line",
    [
        *('{"file_name": "a.jpg"', "[1]", '{"text": "x"}', '{"file_name": "a.jpg"}', "\udcff"),
        *('{"file_name": "a.jpg", "text": 3}', '{"file_name": 3, "text": "x"}'),
    ],
)
def test_a_broken_metadata_line_is_named(tmp_path: Path, line: str) -> None:
    good = b'{"file_name": "b.jpg", "text": "fine"}\n'
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(good + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="UTF-8" if line == "\udcff" else "line 2"):
        read_captions(tmp_path, [tmp_path / "a.jpg"], "prompt")


# Sizes


def test_buckets_at_1024_are_those_of_sdxl() -> None:
    buckets = bucket_sizes(1024)
    for size in [(1024, 1024), (832, 1216), (1216, 832), (896, 1152), (768, 1344), (704, 1408)]:
        assert size in buckets
    assert bucket_sizes(64, step=8, max_aspect=1.0) == [(64, 64)]
    with pytest.raises(UserError, match="32"):
        bucket_sizes(32)


@given(
    st.sampled_from([(64, 8), (48, 8), (512, 64), (500, 64), (768, 64), (1024, 64), (70, 64)]),
    st.floats(1.0, 4.0),
)
def test_buckets(resolution_and_step: tuple[int, int], max_aspect: float) -> None:
    resolution, step = resolution_and_step
    buckets = bucket_sizes(resolution, step, max_aspect)
    side = resolution // step * step
    assert (side, side) in buckets and len(set(buckets)) == len(buckets)
    for h, w in buckets:
        assert h % step == 0 and w % step == 0 and step <= h and step <= w
        assert h * w <= resolution**2
        assert max(h, w) <= min(h, w) * max_aspect
        assert (w, h) in buckets
    assert [h / w for h, w in buckets] == sorted(h / w for h, w in buckets)


@given(st.integers(8, 6000), st.integers(8, 6000))
def test_the_nearest_bucket_keeps_most_of_the_picture(height: int, width: int) -> None:
    def kept(bucket: tuple[int, int]) -> float:
        ratio = (height / width) / (bucket[0] / bucket[1])
        return min(ratio, 1 / ratio)

    buckets = bucket_sizes(512)
    best = nearest_bucket((height, width), buckets)
    assert best in buckets
    assert kept(best) >= max(map(kept, buckets)) - 1e-6
    if height == width:
        assert best == (512, 512)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    source=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    crop=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_fit_picture_is_a_resize_and_a_crop(
    size: tuple[int, int], source: tuple[int, int], crop: tuple[float, float]
) -> None:
    import numpy as np

    image = photo(source[1], source[0])
    fitted, original, (top, left) = fit_picture(image, size, crop)
    assert fitted.size == (size[1], size[0]) and original == source
    scale = max(size[0] / source[0], size[1] / source[1])
    scaled = (max(size[0], round(source[0] * scale)), max(size[1], round(source[1] * scale)))
    assert top == round((scaled[0] - size[0]) * crop[0])
    assert left == round((scaled[1] - size[1]) * crop[1])
    assert min(scaled[0] - size[0], scaled[1] - size[1]) == 0
    plain = image.resize((scaled[1], scaled[0]), Image.Resampling.LANCZOS)
    plain = plain.crop((left, top, left + size[1], top + size[0]))
    difference = np.abs(np.asarray(plain, int) - np.asarray(fitted, int))
    assert difference.max() <= 2


def test_fit_picture_of_a_thread_of_pixels_stays_small() -> None:
    fitted, original, (top, left) = fit_picture(Image.new("L", (20_000, 8)), (1024, 1024))
    assert fitted.size == (1024, 1024) and fitted.mode == "RGB" and original == (8, 20_000)
    assert top == 0 and left == (20_000 * 128 - 1024) // 2
    with pytest.raises(ValueError):
        fit_picture(photo(), (8, 8), (0.5, 1.2))


def test_tensors_and_pictures_convert_both_ways() -> None:
    import numpy as np
    import torch

    values = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.is_contiguous() and tensor.min() == -1 and tensor.max() == 1
    assert torch.equal(to_tensor(to_image(tensor)), tensor)
    assert np.array_equal(np.asarray(to_image(tensor)), values)
    wild = torch.tensor([-9.0, 9.0, math.nan]).view(3, 1, 1).bfloat16().requires_grad_()
    assert to_image(wild).getpixel((0, 0)) == (0, 255, 0)


# Batches


@given(
    st.lists(st.sampled_from([(512, 512), (448, 576), "c"]), max_size=40),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_batches(buckets: list[object], size: int, seed: int, epoch: int) -> None:
    dealt = batches(buckets, size, seed, epoch)
    assert dealt == batches(tuple(buckets), size, seed, epoch)
    assert {index for batch in dealt for index in batch} == set(range(len(buckets)))
    for batch in dealt:
        assert len(batch) == size
        assert len({buckets[index] for index in batch}) == 1
    assert len(dealt) == sum(math.ceil(buckets.count(b) / size) for b in set(buckets))


def test_batches_are_the_same_everywhere_and_differ_between_epochs() -> None:
    assert batches([0] * 6, 2, seed=7, epoch=0) == [[1, 4], [3, 0], [2, 5]]
    orders = {str(batches([0] * 12, 1, seed=0, epoch=epoch)) for epoch in range(20)}
    assert len(orders) == 20
    assert batches([0] * 12, 1, seed=1, epoch=2) != batches([0] * 12, 1, seed=12, epoch=0)
    with pytest.raises(ValueError):
        batches([0], 0, 0, 0)


# The rest


def test_content_key(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert content_key(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(UserError, match="nowhere"):
        content_key(tmp_path / "nowhere")


def test_torch_is_not_needed_to_look_at_a_folder() -> None:
    code = "import sys, diffusekrona.data.folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_real_photographs(tmp_path: Path) -> None:
    folder = REPOSITORY.parent / "shared" / "dreambooth" / "dog6"
    if not folder.is_dir():
        pytest.skip("the DreamBooth dataset is not here")
    pictures, skipped = find_pictures(folder)
    assert len(pictures) == 5 and not skipped
    hinted = load_picture(pictures[0], min_size=64)
    whole = ImageOps.fit(load_picture(pictures[0]), (64, 64), Image.Resampling.LANCZOS)
    difference = (to_tensor(fit_picture(hinted, (64, 64))[0]) - to_tensor(whole)).abs().mean()
    assert difference < 0.02
