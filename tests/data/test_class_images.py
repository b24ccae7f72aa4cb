"""Class pictures: those of another prompt or base are not trained as this one's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusekrona.bases.fingerprint import fingerprint_of
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import why_not
from diffusekrona.data import class_images
from diffusekrona.data.class_images import (
    class_pictures,
    draw_class_pictures,
    missing_class_pictures,
    refuse_other_pictures,
    refuse_pictures_of,
)
from diffusekrona.sampling.grids import save_png


def test_pictures_of_another_prompt_or_base_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    image.save(tmp_path / "photo.png")  # somebody's own
    (tmp_path / "odd.png").write_text("not a picture")
    save_png(image, tmp_path / "class_00000.png", {"prompt": "a dog", "base": "/old/place/sd15"})
    refuse_other_pictures(tmp_path, "a dog", "/new/place/sd15")
    refuse_other_pictures(tmp_path / "nowhere", "a dog", "x")
    with pytest.raises(UserError, match=r"class_00000\.png was drawn with prompt 'a dog'"):
        refuse_other_pictures(tmp_path, "a cat", "sd15")
    with pytest.raises(UserError, match="give another --class_data_dir"):
        refuse_other_pictures(tmp_path, "a dog", "stabilityai/sdxl")


def test_a_base_is_known_by_its_files(tmp_path: Path) -> None:
    image, one, other = Image.new("RGB", (16, 16)), tmp_path / "a" / "sd", tmp_path / "b" / "sd"
    for base in (one, other):
        base.mkdir(parents=True)
        (base / "model_index.json").write_text(f'{{"of": "{base.parent.name}"}}')
    recipe = {"prompt": "a dog", "base": str(one), "base_files": fingerprint_of(str(one))}
    save_png(image, tmp_path / "class" / "class_00000.png", recipe)
    refuse_other_pictures(tmp_path / "class", "a dog", str(one.rename(tmp_path / "moved")))
    with pytest.raises(UserError, match="whose files are not those of"):
        refuse_other_pictures(tmp_path / "class", "a dog", str(other))
    recipe = {"prompt": "a dog", "base": "x/sd", "revision": "main", "base_files": None}
    save_png(image, tmp_path / "class" / "class_00000.png", recipe)
    with pytest.raises(UserError, match="revision 'main', this run has 'old'"):
        refuse_other_pictures(tmp_path / "class", "a dog", "x/sd", "old")
    save_png(image, tmp_path / "class" / "class_00000.png", recipe | {"adapters": ["a"]})
    with pytest.raises(UserError, match="an adapter, class pictures are the base's own"):
        refuse_other_pictures(tmp_path / "class", "a dog", "x/sd", "main")


def test_what_cannot_be_known_is_said_and_damaged_pictures_are_drawn_again(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    image = Image.new("RGB", (32, 32))
    image.save(tmp_path / "photo.jpg")  # somebody's own
    (tmp_path / "notes.txt").write_text("about them")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    save_png(image, tmp_path / "class_00000.png", {"prompt": "a dog", "base": "sd"})
    whole = (tmp_path / "class_00000.png").read_bytes()
    (tmp_path / "class_00000.png").write_bytes(whole[:-40])
    assert missing_class_pictures(tmp_path, 3) == [0, 1]
    state = SimpleNamespace(
        process_index=0, num_processes=1, is_main_process=True, device="cpu",
        wait_for_everyone=lambda: None,
    )  # fmt: skip
    family = SimpleNamespace(drawing_defaults=lambda *_: SimpleNamespace(steps=1, guidance=1.0))
    monkeypatch.setattr(class_images, "load_pipeline", lambda *_, **options: None)
    monkeypatch.setattr(class_images, "place", lambda *_: None)
    monkeypatch.setattr(class_images, "family_of_pipeline", lambda _: family)
    monkeypatch.setattr(class_images, "generate", lambda _, words, *a, **b: [image] * len(words))
    monkeypatch.setattr(class_images, "steps_or", lambda *_: 1)
    drawn = draw_class_pictures(state, "sd", "a dog", tmp_path, 3, 2)
    assert [path.name for path in drawn] == ["class_00000.png", "class_00001.png", "photo.jpg"]
    assert all(why_not(path) is None for path in drawn) and not missing_class_pictures(tmp_path, 3)
    assert "skipped in" in caplog.text and "broken.jpg" in caplog.text
    assert "1 of 3 class pictures" in caplog.text and "photo.jpg" in caplog.text
    assert "notes.txt" not in caplog.text


def test_damaged_pictures_alone_are_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "class_00000.png").write_bytes(b"no picture")
    assert class_pictures(tmp_path, 2) == [] and missing_class_pictures(tmp_path, 2) == [0, 1]


def test_pictures_of_the_subject_are_none_of_its_class(tmp_path: Path) -> None:
    (folder := tmp_path / "dog").mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "photo.png")
    with pytest.raises(UserError, match=r"photo\.png is a picture of the subject"):
        refuse_pictures_of([folder / "photo.png"], folder)
    refuse_pictures_of([folder / "photo.png"], tmp_path / "nowhere")
