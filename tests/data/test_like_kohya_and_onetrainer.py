"""Folders of kohya's sd-scripts and of OneTrainer are read as they read them.

The expected values are what their own code gave for these very folders: sd-scripts v0.10.1 (commit
48d368f: `config_util`, the datasets and `process_caption` of `train_util`, `apply_masked_loss`'s
scaling), and OneTrainer's modules (commit 23df383) with mgds 3a6994a.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diffusekrona.common.pictures import picture_size
from diffusekrona.data.examples import Example, balanced, look_through, sizes_of
from diffusekrona.data.masks import cut_masks
from diffusekrona.data.settings import DataSettings
from diffusekrona.training.losses import dreambooth_loss


def picture(path: Path, alpha: np.ndarray | None = None, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "navy")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.save(path)


CONFIG = """
[general]
caption_extension = '.txt'
resolution = 64
[[datasets]]
batch_size = 2
keep_tokens = 1
[[datasets.subsets]]
image_dir = '{root}/tags'
class_tokens = 'sks dog of the class'
num_repeats = 3
shuffle_caption = {on}
caption_prefix = 'best,'
caption_suffix = ', end'
caption_dropout_rate = 0.2
[[datasets.subsets]]
image_dir = '{root}/sep'
shuffle_caption = {on}
keep_tokens_separator = '|||'
secondary_separator = ';;;'
[[datasets.subsets]]
image_dir = '{root}/wild'
enable_wildcard = true
num_repeats = 2
[[datasets.subsets]]
image_dir = '{root}/reg'
is_reg = true
class_tokens = 'dog'
[[datasets.subsets]]
image_dir = '{root}/off'
num_repeats = 0
[[datasets]]
resolution = [64, 48]
enable_bucket = true
bucket_reso_steps = 8
min_bucket_reso = 8
[[datasets.subsets]]
image_dir = '{root}/alpha'
class_tokens = 'thing'
caption_extension = 'caption'
alpha_mask = true
flip_aug = true
[[datasets]]
[[datasets.subsets]]
metadata_file = '{root}/md.json'
enable_wildcard = {on}
image_dir = '{root}/meta'
"""


@pytest.fixture
def kohyas(tmp_path: Path) -> Path:
    for name in ("tags/a", "tags/b", "tags/d", "tags/e", "sep/a", "sep/b", "wild/a", "wild/b"):
        picture(tmp_path / f"{name}.png")
    for name in ("wild/c", "reg/a", "reg/b", "meta/one", "meta/two", "meta/four", "off/a"):
        picture(tmp_path / f"{name}.png")
    for name, text in {
        "tags/a.txt": "sks dog, red, sitting,  grass , sky\nsecond line, more",
        "tags/b.txt": "sks dog",
        "tags/d.txt": "double  space, a,b",
        "sep/a.txt": "1girl, solo ||| red, sky;;;cloud;;;day, green ||| rating: general",
        "sep/b.txt": "1girl, sky;;;cloud, red",
        "wild/a.txt": "a {red|green|} dog\n\na {{big|small}} cat, {one|two} {three|four}\n",
        "wild/b.txt": "plain {single} brace",
        "wild/c.txt": "{a|b",
        "alpha/half.caption": "by .caption",
        "alpha/half.txt": "by .txt",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    half = np.zeros((48, 64), np.uint8)
    half[:, :20], half[:24, 20:] = 255, 90
    picture(tmp_path / "alpha" / "half.png", half)
    picture(tmp_path / "alpha" / "none.png")
    table = {
        "one": {"caption": "a pot", "tags": "blue, round"},
        "two": {"caption": "first\nsecond", "tags": "blue, round"},
        "four": {"caption": "only a caption"},
    }
    named = {str(tmp_path / "meta" / f"{name}.png"): entry for name, entry in table.items()}
    (tmp_path / "md.json").write_text(json.dumps(named))
    return tmp_path


def read(root: Path, on: bool) -> dict[str, Example]:
    path = root / "data.toml"
    path.write_text(CONFIG.format(root=root, on=str(on).lower()))
    examples, findings = look_through(DataSettings(instance_data_dir=path, instance_prompt=""), 0)
    assert not any(finding.fatal for finding in findings)
    return {e.path.relative_to(root).as_posix(): e for e in balanced(examples)}


def plain(captions: tuple[str, ...] | set[str]) -> set[str]:
    """Without the spaces beside commas and the doubled ones, which change no token of CLIP."""
    return {",".join(" ".join(tag.split()) for tag in caption.split(",")) for caption in captions}


def test_a_dataset_config_of_kohyas(kohyas: Path) -> None:
    found = read(kohyas, False)
    assert {name: plain(example.captions) for name, example in found.items()} == {
        "tags/a.png": {"best,sks dog,red,sitting,grass,sky,end"},
        "tags/b.png": {"best,sks dog,end"},
        "tags/d.png": {"best,double space,a,b,end"},
        "tags/e.png": {"best,sks dog of the class,end"},
        "sep/a.png": {"1girl,solo ||| red,sky,cloud,day,green ||| rating: general"},
        "sep/b.png": {"1girl,sky,cloud,red"},
        "wild/a.png": {
            *("a red dog", "a green dog", "a dog"),
            *(f"a {{big|small}} cat,{a} {b}" for a in ("one", "two") for b in ("three", "four")),
        },
        "wild/b.png": {"plain single brace"},
        "wild/c.png": {"{a|b"},
        "reg/a.png": {"dog"},
        "reg/b.png": {"dog"},
        "alpha/half.png": {"by .caption"},
        "alpha/none.png": {"thing"},
        "meta/one.png": {"a pot,blue,round"},
        # sd-scripts leaves the tags out of a caption of several lines, where they follow the last.
        "meta/two.png": {"first,blue,round"},
        "meta/four.png": {"only a caption"},
    }
    repeats = {name: example.repeats for name, example in found.items() if example.repeats != 1}
    assert repeats == {
        **dict.fromkeys(("tags/a.png", "tags/b.png", "tags/d.png", "tags/e.png"), 3),
        **dict.fromkeys(("wild/a.png", "wild/b.png", "wild/c.png"), 2),
        **dict.fromkeys(("reg/a.png", "reg/b.png"), 10),  # 20 others in that dataset, not 25
    }
    assert {name for name, e in found.items() if e.regularisation} == {"reg/a.png", "reg/b.png"}
    assert {e.caption_dropout for n, e in found.items() if n.startswith("tags")} == {0.2}
    assert {n for n, e in found.items() if e.random_flip} == {"alpha/half.png", "alpha/none.png"}


def test_shuffled_tags_of_kohyas(kohyas: Path) -> None:
    found = read(kohyas, True)
    a = found["tags/a.png"].captions
    assert all(order.split(", ")[0] == "best" for order in a)  # one token is kept: the prefix's
    rest = {"sks dog", "red", "sitting", "grass", "sky", "end"}
    assert all(set(order.split(", ")[1:]) == rest for order in a) and len(set(a)) > 4
    middles = [tag for tag in ("red", "green", "sky,cloud,day")]
    theirs = {
        f"1girl, solo, {one}, {two}, {three}, rating: general"
        for one in middles for two in middles for three in middles if len({one, two, three}) == 3
    }  # fmt: skip
    assert set(found["sep/a.png"].captions) <= theirs
    assert set(found["sep/b.png"].captions) == {"1girl, sky,cloud, red", "1girl, red, sky,cloud"}
    assert plain(found["meta/two.png"].captions) == {"first,blue,round", "second,blue,round"}


def test_alpha_masks_of_kohyas(kohyas: Path) -> None:
    """Scaled and averaged over the cells of the latents, to the last bit."""
    found = read(kohyas, False)
    half, none = found["alpha/half.png"], found["alpha/none.png"]
    (size,) = set(sizes_of([half, none], 64, 8))
    assert size == (48, 64)  # the bucket that the config names
    assert none.mask is None  # trained on as a whole; ones there
    assert half.mask is not None
    have, crop = picture_size(half.path), [(0.5, 0.5)]
    (cells,) = cut_masks(half.mask, half.path, have, size, crop, False, (6, 8))
    grey = 90 / 255
    above, below = [1, 1, (4 + 4 * grey) / 8, *[grey] * 5], [1, 1, 0.5, *[0.0] * 5]
    assert torch.allclose(cells[0], torch.tensor([above] * 3 + [below] * 3), atol=1e-7)


@pytest.fixture
def onetrainers(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "c.webp", "d.png"):
        picture(tmp_path / name, size=(64, 64))
    stripe = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(stripe).rectangle((8, 0, 39, 63), fill=255)
    stripe.save(tmp_path / "a-masklabel.png")
    ramp = Image.linear_gradient("L").resize((64, 64))
    ramp.save(tmp_path / "b-masklabel.png")
    ramp.convert("RGB").save(tmp_path / "c-masklabel.png")
    (tmp_path / "a.txt").write_text("first, red\n\n  second, blue \n")
    (tmp_path / "b.txt").write_text("sks dog, red, blue, green")
    (tmp_path / "c.txt").write_text("\nonly\n")
    return tmp_path


def test_captions_and_masks_of_onetrainer(onetrainers: Path) -> None:
    data = DataSettings(
        instance_data_dir=onetrainers, caption_lines=True, masked_loss=True, instance_prompt="x"
    )
    found = {example.path.name: example for example in look_through(data, 0)[0]}
    assert {name: example.captions for name, example in found.items()} == {
        "a.png": ("first, red", "second, blue"),
        "b.jpg": ("sks dog, red, blue, green",),
        "c.webp": ("only",),
        "d.png": ("x",),  # where it takes an empty caption
    }
    cells = {}
    for name, example in found.items():
        if example.mask:
            size = (64, 64)
            one = cut_masks(example.mask, example.path, size, size, [(0.5, 0.5)], False, (8, 8))[0]
            cells[name] = one[0]
    assert set(cells) == {"a.png", "b.jpg", "c.webp"}  # d.png is trained on as a whole
    # It scales with an antialiased filter that reaches into the neighbouring cells: .125 and .875
    # where the stripe ends, .074 to .929 on the ramp.
    assert cells["a.png"][3].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
    theirs = torch.tensor([0.074, 0.188, 0.314, 0.439, 0.565, 0.690, 0.816, 0.929])
    for name in ("b.jpg", "c.webp"):
        assert torch.allclose(cells[name].mean(dim=1), theirs, atol=0.014)


def test_the_masked_loss_is_onetrainers_with_the_normalised_area() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    mask = torch.rand(3, 1, 8, 8)
    mask[0, :, :, :4] = 0
    loss = dreambooth_loss(prediction, target, mask=mask.clamp(min=0.1))
    assert loss.item() == pytest.approx(2.2486164569854736, rel=1e-6)
