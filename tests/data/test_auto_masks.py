"""Masks by rembg: a stand-in with its signatures, since its models cannot be downloaded here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from diffusekrona.check_data import main
from diffusekrona.common.errors import UserError
from diffusekrona.data.auto_masks import make_masks


def new_session(model_name="bria-rmbg", *args, sess_opts=None, **kwargs):
    if model_name == "gone":
        raise ConnectionError("HTTPSConnectionPool(host='example.org'): Max retries exceeded")
    if model_name == "half":  # as onnxruntime's, which are no OSErrors
        raise type("InvalidProtobuf", (Exception,), {})("Load model from half.onnx failed")
    if model_name not in ("bright", "two"):
        raise ValueError(f"No session class found for model '{model_name}'")
    return model_name


def remove(
    data, alpha_matting=False, alpha_matting_foreground_threshold=240,
    alpha_matting_background_threshold=10, alpha_matting_erode_size=10, session=None,
    only_mask=False, post_process_mask=False, decontaminate=False, vitmatte=False,
    vitmatte_model=None, bgcolor=None, force_return_bytes=False, *args, **kwargs,
):  # fmt: skip
    assert isinstance(data, Image.Image) and only_mask
    mask = data.convert("L").point(lambda value: 255 * (value > 128))
    if session == "two":
        mask = mask.resize((mask.width, 2 * mask.height))
    return mask


@pytest.fixture
def rembg(monkeypatch) -> None:
    module = ModuleType("rembg")
    module.new_session, module.remove = new_session, remove
    monkeypatch.setitem(sys.modules, "rembg", module)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "c.png", "d.png"):
        picture = Image.new("RGB", (40, 32))
        picture.paste("white", (0, 0, 20, 32))
        if name == "c.png":
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(tmp_path / name)
    Image.new("L", (40, 32), 7).save(tmp_path / "d-masklabel.png")
    return tmp_path


def test_pictures_without_a_mask_get_one(rembg, photos: Path, capsys) -> None:
    flags = ["--instance_prompt", "a dog", "--masked_loss", "--output", str(photos / "p.html")]
    assert main([str(photos), "--make_masks", "bright", *flags]) == 0
    assert "Masks written: 2" in capsys.readouterr().out
    for name in ("a.mask.png", "b.mask.png"):
        mask = np.asarray(Image.open(photos / name))
        assert mask.shape == (32, 40) and mask[:, :16].min() == 255 and mask[:, 24:].max() == 0
    assert not (photos / "c.mask.png").exists() and not (photos / "d.mask.png").exists()
    assert np.asarray(Image.open(photos / "d-masklabel.png")).max() == 7
    assert make_masks([photos], "bright", progress=False) == []


def test_a_mask_is_never_overwritten(rembg, photos: Path) -> None:
    (photos / "a.mask.png").mkdir()  # not a mask, but its place is taken
    assert make_masks([photos], "bright", progress=False) == [photos / "b.mask.png"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("none", "rembg cannot load it: No session"),
        ("gone", "rembg cannot load it: HTTPSConnectionPool.*Max retries"),
        ("half", "rembg cannot load it: Load model from half.onnx failed"),
        ("two", "more than one mask"),
    ],
)
def test_models_that_do_not_serve(rembg, photos: Path, model: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_masks([photos], model, progress=False)
    assert "\n" not in str(caught.value)
    assert not list(photos.glob("*.mask.png"))


def test_without_rembg_it_is_one_line(photos: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(UserError, match=r"--make_masks needs rembg\[cpu\], which is not installed"):
        make_masks([photos], "bright", progress=False)
