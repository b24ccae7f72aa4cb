"""The survey shows what training reads, and names what it would stop with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from diffusekrona.check_data import main
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import to_tensor
from diffusekrona.data.disk_cache import OFF
from diffusekrona.data.examples import read_examples, sizes_of
from diffusekrona.data.latents import cache_pictures
from diffusekrona.data.settings import DataSettings
from diffusekrona.data.survey import Target, survey
from diffusekrona.data.survey_page import folder_table, print_survey, survey_page


def noise(path: Path, width: int, height: int, **options) -> None:
    rng = np.random.default_rng(sum(map(ord, path.name)))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "photos").mkdir()
    for name, width, height in (("a.png", 90, 60), ("b.png", 64, 64), ("c.png", 60, 100)):
        noise(folder / name, width, height)
        (folder / name).with_suffix(".txt").write_text(f"photo {name[0]}")
    return folder


class Recorder:
    """A family whose latents are not needed: it keeps the pixels that are to be encoded."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def encode_pictures(self, vae: object, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels[0])
        return torch.zeros(1, 8, 4, 4)


@pytest.mark.parametrize("buckets", [False, True])
def test_the_crops_are_those_that_training_encodes(folder: Path, buckets: bool) -> None:
    data = DataSettings(
        instance_data_dir=folder, resolution=32, aspect_ratio_buckets=buckets, holdout=1
    )
    found = survey(data, Target(32, 8), seed=3, shown=10)
    held_out = {one.name for one in found.pictures if one.held_out}
    assert len(held_out) == 1
    examples = [e for e in read_examples(data, 3) if e.path.name not in held_out]
    sizes = sizes_of(examples, 32, 8)
    family = Recorder()
    cache_pictures(
        family, lambda: None, examples, [[size] for size in sizes], 3, OFF, {}, False
    )  # fmt: skip
    shown = [to_tensor(crop) for one in found.pictures if not one.held_out for crop in one.crops]
    assert len(shown) == len(family.seen) >= 2
    assert all(map(torch.equal, shown, family.seen))
    assert sum(count for _, count in found.buckets) == 2


def remarks(found) -> dict[str, str]:
    return {one.name: "; ".join((*one.wrong, *one.notes)) for one in found.pictures}


def test_what_is_worth_a_remark(folder: Path) -> None:
    noise(folder / "small.png", 20, 20)
    noise(folder / "wide.png", 300, 60)
    Image.open(folder / "b.png").save(folder / "copy.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise(folder / "profile.jpg", 64, 64, icc_profile=profile)
    (folder / "wide.txt").write_text("sks dog")
    (folder / "stray.txt").write_text("of nothing")
    data = DataSettings(instance_data_dir=folder, trigger="sks dog")
    target = Target(64, words_lost=lambda text: f"lost in {text}" if text == "photo a" else None)
    found = survey(data, target, 0)
    of = remarks(found)
    assert "enlarged 3.2 times" in of["small.png"] and "no caption for" in of["small.png"]
    assert "of the picture is outside each crop; see --aspect_ratio_buckets" in of["wide.png"]
    assert "nearly the same as b.png" in of["copy.png"]
    assert "lost in photo a" in of["a.png"] and "caption without [trigger]" in of["a.png"]
    assert "[trigger]" not in of["wide.png"]
    (one,) = [one for one in found.pictures if one.name == "profile.jpg"]
    assert any("sRGB" in fact for fact in one.file)
    assert any("stray.txt" in line for line in found.notes)
    assert found.stops and not any(one.crops for one in found.pictures)


def test_masks(folder: Path) -> None:
    white = Image.new("L", (90, 60), 255)
    white.paste(0, (45, 0, 90, 60))
    white.save(folder / "a.mask.png")
    Image.new("L", (64, 64)).save(folder / "b.mask.png")
    Image.new("L", (100, 60)).save(folder / "c.mask.png")
    data = DataSettings(instance_data_dir=folder, masked_loss=True, center_crop=True)
    found = survey(data, Target(64), 0, shown=3)
    a, b, c = found.pictures
    assert a.learned == pytest.approx(0.5, abs=0.02) and not a.wrong
    left, right = np.asarray(a.crops[0])[:, :28].mean(), np.asarray(a.crops[0])[:, 36:].mean()
    assert right < 0.4 * left
    assert "the mask leaves out everything" in b.notes
    assert "must have the shape of its picture" in c.wrong[0] and found.stops


def test_shares_of_a_batch(folder: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "img"
    for name in ("10_sks dog", "2_zwx pot"):
        (root / name).mkdir(parents=True)
    noise(root / "10_sks dog" / "a.png", 64, 64)
    for number in range(5):
        noise(root / "2_zwx pot" / f"{number}.png", 64, 64)
    found = survey(DataSettings(instance_data_dir=root), Target(64), 0)
    dog, pot = found.folders
    assert (dog.folder, dog.pictures, dog.samples, dog.share) == ("10_sks dog", 1, 10, 0.5)
    assert (pot.pictures, pot.samples, pot.share) == (5, 10, 0.5)
    print_survey("photos", found)
    out = capsys.readouterr().out
    assert "share of a batch" in out and "50.0%" in out and "10 times" in out
    page = survey_page("photos", found, 64)
    assert "share of a batch" in page and "10 times" in page
    plain = survey(DataSettings(instance_data_dir=folder), Target(64), 0)
    assert folder_table(plain) is None and "share of a batch" not in survey_page("a", plain, 64)


def test_the_program(folder: Path, tmp_path: Path, tiny_sd1, capsys) -> None:
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    flags = ["--output", page, "--json", numbers, "--aspect_ratio_buckets"]
    flags += ["--pretrained_model_name_or_path", tiny_sd1, "--resolution", "32"]
    assert main([str(flag) for flag in (folder, *flags)]) == 0
    text = page.read_text()
    assert text.count("<img") >= 3 and "photo a" in text and "a.png" in text
    content = json.loads(numbers.read_text())
    assert [one["captions"] for one in content["pictures"]] == [
        ["photo a"],
        ["photo b"],
        ["photo c"],
    ]
    assert sum(bucket["pictures"] for bucket in content["buckets"]) == 3
    assert "3 pictures" in capsys.readouterr().out
    (folder / "a.txt").unlink()
    assert main([str(flag) for flag in (folder, *flags)]) == 1
    assert "training would stop: no caption for" in capsys.readouterr().out
    with pytest.raises(UserError, match="no folder"):
        main([str(tmp_path / "nowhere")])
