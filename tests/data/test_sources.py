"""Several folders in one run: YAML, kohya's TOML and JSON, repeats, weights, regularisation."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusekrona.check_data import main as check
from diffusekrona.common.errors import UserError
from diffusekrona.data.cache import Data
from diffusekrona.data.examples import (
    Example,
    balanced,
    epoch_length,
    look_through,
    read_examples,
    sizes_of,
)
from diffusekrona.data.holdout import split_held_out
from diffusekrona.data.latents import Item, Variant
from diffusekrona.data.settings import DataSettings
from diffusekrona.data.sources import some_photos, sources_of
from diffusekrona.train_dreambooth import main
from diffusekrona.training.batch import make_batch, pick
from diffusekrona.training.log import origin_of
from diffusekrona.training.resolved_run import resolve_run
from diffusekrona.training.settings import LossSettings, OptimisationSettings, parse_settings


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for folder, colours in (("dog", ("red", "green")), ("pot", ("blue",)), ("reg", ("white",))):
        (tmp_path / folder).mkdir()
        for colour in colours:
            Image.new("RGB", (24, 16), colour).save(tmp_path / folder / f"{colour}.png")
    (tmp_path / "dog" / "red.txt").write_text("[trigger], red")
    return tmp_path


TWO = """
random_flip: true
folders:
  - folder: dog
    trigger: sks dog
    prompt: a photo of [trigger]
    repeats: 2
  - {folder: pot, prompt: a zwx pot, weight: 0.5, random_flip: false, resolution: 32}
"""


def yaml(folder: Path, text: str = TWO) -> Path:
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def test_entries_and_what_they_leave_out(folders: Path) -> None:
    data = DataSettings(instance_data_dir=yaml(folders), keep_tokens=3, random_flip=False)
    dog, pot = sources_of(data)
    assert (dog.keep_tokens, dog.random_flip, dog.repeats, dog.weight) == (3, True, 2, 1)
    assert (pot.keep_tokens, pot.random_flip, pot.repeats, pot.weight) == (3, False, 1, 0.5)
    examples = read_examples(data, 0)
    assert [e.captions for e in examples] == [
        ("a photo of sks dog",), ("sks dog, red",), ("a zwx pot",),
    ]  # fmt: skip
    assert epoch_length(examples) == 5
    assert sizes_of(examples, 16, 8) == [(16, 16), (16, 16), (32, 32)]
    assert [p.name for p in some_photos(data.instance_data_dir, 2)] == ["green.png", "blue.png"]
    with pytest.raises(UserError, match="pot: resolution 32 is not a multiple of 64"):
        sizes_of(examples, 16, 64)


@pytest.mark.parametrize("words", ["sks dog", None])
def test_the_prompt_of_the_flags_has_each_folders_own_trigger(folders: Path, words) -> None:
    dog = "{folder: dog}" if words else "{folder: dog, trigger: sks dog}"
    text = f"folders: [{dog}, {{folder: pot, trigger: zwx pot}}]"
    argv = flags(Path("pocket"), yaml(folders, text), folders / "run")
    argv += ["--instance_prompt", "a photo of [trigger]", *(("--trigger", words) if words else ())]
    settings = parse_settings(argv)
    assert [e.captions for e in read_examples(settings.data, 0)] == [
        ("a photo of sks dog",), ("sks dog, red",), ("a photo of zwx pot",),
    ]  # fmt: skip
    resolved = resolve_run(settings.base, settings.adapter, settings.data.resolution)
    origin = origin_of(settings.base, settings.data, settings.optimisation, resolved)
    assert origin["instance_prompt"] == ("a photo of sks dog" if words else "")


def test_a_plain_folders_content_is_what_it_was(folders: Path) -> None:
    (example,) = read_examples(
        DataSettings(instance_data_dir=folders / "pot", instance_prompt="a"), 0
    )
    assert len(example.content().split()) == 2  # hash and caption, which older runs compare


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("folders: []", "names no folders"),
        ("a: 1", "names no folders"),
        ("folders: [{prompt: a}]", "folder 1: needs `folder: PATH`"),
        ("folders: [{folder: dog, repeat: 2}]", "did you mean repeats"),
        ("folders: [{folder: dog, repeats: 0}]", "folder 1: repeats: Input should be greater"),
        ("folders: [{folder: dog, weight: many}]", "folder 1: weight"),
        ("folders: [{folder: nowhere, prompt: a}]", "no folder .*nowhere"),
        ("folders: [{folder: pot}]", "no caption for"),
    ],
)
def test_mistakes_are_one_line(folders: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_examples(DataSettings(instance_data_dir=yaml(folders, text)), 0)
    assert "\n" not in str(caught.value)


KOHYA = """
[general]
shuffle_caption = false
caption_extension = '.txt'
keep_tokens = 1
flip_aug = true

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = '{0}/dog'
  class_tokens = 'hoge girl'
  num_repeats = 3
  caption_prefix = 'best,'

  [[datasets.subsets]]
  is_reg = true
  image_dir = '{0}/reg'
  class_tokens = 'human'
  keep_tokens = 3

[[datasets]]
resolution = [1024, 256]
enable_bucket = true

  [[datasets.subsets]]
  metadata_file = '{0}/pot/md.json'
  random_crop = true
"""


def test_kohyas_files_as_they_are(folders: Path, caplog) -> None:
    path = folders / "kohya.toml"
    path.write_text(KOHYA.format(folders))
    (folders / "dog" / "red.txt").write_text("first line\nsecond line")
    Image.new("RGB", (24, 16)).save(folders / "pot" / "unnamed.png")
    named = {str(folders / "pot" / "blue"): {}, str(folders / "pot" / "blue.png"): {}}
    named[str(folders / "pot" / "blue.png")] = {"caption": "a pot\na jug", "tags": "blue, round"}
    (folders / "pot" / "md.json").write_text(json.dumps(named))
    data = DataSettings(instance_data_dir=path, center_crop=True, keep_tokens=7)
    girl, human, pot = sources_of(data)
    assert (girl.keep_tokens, human.keep_tokens, pot.keep_tokens) == (2, 3, 1)
    assert (girl.resolution, pot.resolution, pot.aspect_ratio_buckets) == (512, 512, True)
    assert (girl.center_crop, pot.center_crop, girl.random_flip) == (True, False, True)
    assert "not used here: batch_size" in caplog.text
    (green, red, white, blue), _ = split_held_out(read_examples(data, 0), data, 0)
    assert green.captions == ("best, hoge girl",) and red.captions == ("best, first line",)
    assert blue.captions == ("a pot, blue, round",) and blue.path.name == "blue.png"
    assert "left out: 1 pictures" in caplog.text
    assert white.regularisation and white.repeats == green.repeats + red.repeats == 6  # its dataset


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[datasets", "is not valid TOML"),
        ("[general]", "datasets must be one table or more"),
        ("[[datasets]]\nresolution = 5", "dataset 1: subsets must be one table or more"),
        ("[[datasets]]\n[[datasets.subsets]]\nclass_tokens = 'a'", "needs image_dir"),
        (
            "[[datasets]]\nresolution = [5, 6]\n[[datasets.subsets]]\nimage_dir = 'a'",
            "is not square",
        ),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 3", "folder"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = {a = 1}", "folder"),
        ("a." * 100_000 + "a = 1", "a line of 200005 characters"),
        ("a = " + "[" * 4000, "is not valid TOML"),
    ],
)
def test_mistakes_in_kohyas_toml(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        sources_of(DataSettings(instance_data_dir=tmp_path / "a.toml"))


def kohyas_subsets(train_data_dir: Path, reg_data_dir: Path | None) -> list[tuple]:
    """What sd-scripts trains on with these two: folder, repeats, class tokens, regularisation.
    Written from its documentation: the number before the first underscore, the rest after it."""
    found = []
    for parent, regularisation in ((train_data_dir, False), (reg_data_dir, True)):
        for folder in sorted(parent.iterdir()) if parent else ():
            match = re.fullmatch(r"\s*([+-]?\d+)\s*(?:_(.*))?", folder.name)
            if match and int(match[1]) >= 1 and any(folder.glob("*.png")):
                found.append((folder, int(match[1]), match[2] or "", regularisation))
    return found


def kohyas_folders(root: Path) -> None:
    for name in ("img/10_sks dog", "img/2_zwx_y pot", "img/3", "img/0_off", "img/dog", "reg/1_dog"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (24, 16)).save(root / name / "a.png")
    (root / "img" / "4_empty").mkdir()
    (root / "log").mkdir()
    (root / "img" / "10_sks dog" / "a.caption").write_text("sks dog, sitting\nof a second line")


def test_folders_named_after_repeats_and_class_tokens(tmp_path: Path) -> None:
    kohyas_folders(tmp_path)
    for place, reg in ((tmp_path / "img", None), (tmp_path, tmp_path / "reg")):
        data = DataSettings(instance_data_dir=place, instance_prompt="", random_flip=True)
        sources = sources_of(data)
        ours = [(one.path, one.repeats, one.prompt, one.regularisation) for one in sources]
        assert ours == kohyas_subsets(tmp_path / "img", reg)
        assert all(one.random_flip for one in sources)  # the rest is as the flags have it
    data = replace(data, instance_prompt="a thing")
    examples, findings = look_through(data, 0)
    captions = {example.path.parent.name: example.captions for example in examples}
    assert captions == {
        "10_sks dog": ("sks dog, sitting",), "2_zwx_y pot": ("zwx_y pot",),
        "3": ("a thing",), "1_dog": ("dog",),
    }  # fmt: skip
    assert sorted(f.text.split(", which")[0].rpartition("/")[2] for f in findings) == [
        "0_off", "4_empty", "dog",
    ]  # fmt: skip
    trained = balanced(examples)
    assert sum(e.repeats for e in trained if e.regularisation) == 10 + 2 + 3
    assert len(some_photos(tmp_path, 3)) == 3


def test_a_folder_of_pictures_beside_numbered_ones_is_a_folder_of_pictures(tmp_path: Path) -> None:
    kohyas_folders(tmp_path)
    Image.new("RGB", (24, 16)).save(tmp_path / "img" / "own.png")
    data = DataSettings(instance_data_dir=tmp_path / "img", instance_prompt="a dog")
    (only,) = sources_of(data)
    assert only.path == tmp_path / "img" and only.prompt == "a dog"
    (tmp_path / "2024").mkdir()  # a number alone, of photos of that year
    Image.new("RGB", (24, 16)).save(tmp_path / "2024" / "a.png")
    shutil.rmtree(tmp_path / "img")
    with pytest.raises(UserError, match="2024 holds 1: give that folder"):
        look_through(replace(data, instance_data_dir=tmp_path), 0)


def test_a_config_in_json_and_a_subset_that_is_there_twice(folders: Path, caplog) -> None:
    dog = {"image_dir": str(folders / "dog"), "class_tokens": "a dog", "color_aug": False}
    config = {"general": {"num_repeats": 2}, "datasets": [{"subsets": [dog, dog]}]}
    path = folders / "config.json"
    path.write_text(json.dumps(config))
    (only,) = sources_of(DataSettings(instance_data_dir=path))
    assert only.repeats == 2 and "is there twice" in caplog.text
    assert "not used" not in caplog.text  # color_aug is off
    path.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        sources_of(DataSettings(instance_data_dir=path))


# What sd-scripts' docs/config_README-en.md says of these captions.
WILDCARDS = """
[general]
shuffle_caption = true
keep_tokens_separator = '|||'
secondary_separator = ';;;'
enable_wildcard = true
caption_extension = '.txt'
[[datasets]]
[[datasets.subsets]]
image_dir = '{0}/dog'
class_tokens = 'unused'
caption_prefix = '1girl, solo |||'
caption_suffix = ', sky;;;cloud;;;day ||| rating: general'
"""


def test_wildcards_and_separators_as_kohya_documents_them(folders: Path) -> None:
    path = folders / "kohya.toml"
    path.write_text(WILDCARDS.format(folders))
    (folders / "dog" / "green.txt").write_text("{simple|white} background\n{{retro style}}")
    green = read_examples(DataSettings(instance_data_dir=path, trigger="a"), 0)[0].captions
    middles = set()
    for caption in green:
        tags = caption.removeprefix("1girl, solo, ").removesuffix(", rating: general")
        middles.add(frozenset(tags.replace("sky,cloud,day", "sky").split(", ")))
    assert middles == {
        frozenset((own, "sky"))
        for own in ("simple background", "white background", "{retro style}")
    }


def test_without_wildcards_only_the_first_line_counts(folders: Path) -> None:
    path = folders / "kohya.toml"
    path.write_text(WILDCARDS.format(folders).replace("enable_wildcard = true", ""))
    (folders / "dog" / "green.txt").write_text("{simple|white}\nsecond")
    captions = read_examples(DataSettings(instance_data_dir=path, trigger="a"), 0)[0].captions
    assert all("{simple|white}" in caption and "second" not in caption for caption in captions)


def test_pictures_are_held_out_of_each_folder(folders: Path) -> None:
    Image.new("RGB", (24, 16), "navy").save(folders / "pot" / "navy.png")
    entries = (
        "folders: [{folder: dog}, {folder: pot, repeats: 3}, {folder: reg, regularisation: 1}]"
    )
    data = DataSettings(
        instance_data_dir=yaml(folders, entries.replace("1}", "true}")), holdout=1,
        instance_prompt="a", trigger="sks",
    )  # fmt: skip
    trained, held = split_held_out(read_examples(data, 0), data, 0)
    assert [e.path.parent.name for e in held] == ["dog", "pot"]
    assert [(e.path.parent.name, e.repeats) for e in trained] == [
        ("dog", 1),
        ("pot", 3),
        ("reg", 4),
    ]
    with pytest.raises(UserError, match=r"none of the 2 pictures in .*dog"):
        split_held_out(read_examples(data, 0), replace(data, holdout=2), 0)


@pytest.mark.parametrize("flag", ["--holdout 1", "--holdout_data_dir"])
def test_no_folder_is_left_without_pictures(folders: Path, flag: str) -> None:
    """Of two that share a picture, the second may hold out what the first has left."""
    shutil.copy(folders / "dog" / "green.png", folders / "pot")
    data = DataSettings(instance_data_dir=yaml(folders))
    held = {"holdout": 1} if flag == "--holdout 1" else {"holdout_data_dir": folders / "dog"}
    data, refused = replace(data, instance_prompt="a", trigger="a", **held), []
    for seed in range(20):
        try:
            trained, _ = split_held_out(read_examples(data, seed), data, seed)
            assert {example.path.parent.name for example in trained} == {"dog", "pot"}
        except UserError as error:
            refused.append(str(error))
    assert refused
    assert all(re.match(rf"{flag}.* leaves none of the 2 pictures in", line) for line in refused)


@pytest.mark.parametrize(("own", "classes"), [(7, 3), (2, 3), (4, 4)])
def test_regularisation_is_as_much_as_the_rest(own: int, classes: int) -> None:
    rest = [Example(Path(f"{n}"), ()) for n in range(own)]
    reg = [Example(Path(f"r{n}"), (), regularisation=True) for n in range(classes)]
    counts = Counter({e.path.name: e.repeats for e in balanced([*rest, *reg])})
    assert sum(n for name, n in counts.items() if name[0] == "r") == own
    shares = [n for name, n in counts.items() if name[0] == "r"]
    assert max(shares) - min(shares) <= 1


def items() -> list[Item]:
    made = []
    for number, (repeats, weight, reg) in enumerate(
        [(1, 1.0, False), (3, 0.5, False), (2, 1, True)]
    ):
        variant = Variant(torch.full((8, 4, 4), float(number)), torch.zeros(6))
        made.append(Item((f"{number}",), {(32, 32): [variant]}, 0.0, repeats, weight, reg))
    return made


def test_repeats_are_occurrences_in_an_epoch() -> None:
    for epoch in range(3):
        chosen = [pick(items(), 1, 5, 6 * epoch + n)[1][0].captions[0] for n in range(6)]
        assert Counter(chosen) == {"0": 1, "1": 3, "2": 2}


def test_weights_and_processes() -> None:
    objective = SimpleNamespace(draw_timestep=lambda g, s: torch.randint(1000, (), generator=g))
    data = Data(items(), [], {}, {}, {}, {}, torch.float32)
    loss = LossSettings(prior_loss_weight=0.25)

    def batch(number: int, size: int, processes: int = 1, index: int = 0):
        accelerator = SimpleNamespace(
            num_processes=processes, process_index=index, device=torch.device("cpu")
        )
        optimisation = OptimisationSettings(train_batch_size=size, seed=5)
        return make_batch(optimisation, loss, data, accelerator, objective, number)

    for number in range(6):
        whole = batch(number, 2)
        halves = [batch(number, 1, 2, index) for index in range(2)]
        for name in ("moments", "noise", "timesteps", "weight"):
            assert torch.equal(whole[name], torch.cat([half[name] for half in halves])), name
        expected = [{"0": 1.0, "1": 0.5, "2": 0.25}[caption] for caption in whole["captions"]]
        assert whole["weight"].tolist() == expected


def test_weights_are_of_the_folders_and_not_of_the_preserved_class() -> None:
    objective = SimpleNamespace(draw_timestep=lambda g, s: torch.randint(1000, (), generator=g))
    data = Data(items(), [], {}, {}, {}, {}, torch.float32, preserved="a dog")
    accelerator = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
    optimisation = OptimisationSettings(train_batch_size=2)
    for number in range(6):
        batch = make_batch(
            optimisation, LossSettings(prior_loss_weight=0.25), data, accelerator, objective, number
        )
        assert batch["weight"][2:].tolist() == [1, 1] and batch["captions"][2:] == ["a dog"] * 2


def flags(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(data),
        "--output_dir", str(out), "--a2", "16", "--max_train_steps", "4", "--resolution", "16",
        "--report_to", "none", "--cpu", *more,
    ]  # fmt: skip


def same(one: Path, two: Path) -> bool:
    a, b = (load_file(folder / "adapter.safetensors") for folder in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_of_two_subjects_resumes_exactly(tiny_sd1, folders: Path, capsys) -> None:
    data = yaml(folders)
    assert main(flags(tiny_sd1, data, folders / "whole")) == 0
    half = flags(tiny_sd1, data, folders / "half", "--checkpointing_steps", "2")
    assert main([*half, "--max_train_steps", "2"]) == 0
    resumed = [*half, "--resume_from_checkpoint", "latest"]
    yaml(folders, TWO.replace("weight: 0.5", "weight: 0.6"))
    with pytest.raises(UserError, match="pictures and captions"):
        main(resumed)
    yaml(folders)
    assert main(resumed) == 0
    assert same(folders / "whole", folders / "half")
    report = folders / "report.html"
    base = ["--pretrained_model_name_or_path", str(tiny_sd1), "--resolution", "16"]
    assert check([str(data), "--output", str(report), *base]) == 0
    assert "without [trigger]" not in report.read_text()  # each folder has its own
    assert "dog/red.png" in report.read_text() and "pot/blue.png" in capsys.readouterr().out


def test_one_folder_in_a_file_is_the_folder(tiny_sd1, folders: Path) -> None:
    more = ("--instance_prompt", "a sks dog", "--trigger", "sks")
    assert main(flags(tiny_sd1, folders / "dog", folders / "plain", *more)) == 0
    assert (
        main(flags(tiny_sd1, yaml(folders, "folders: [{folder: dog}]"), folders / "file", *more))
        == 0
    )
    assert same(folders / "plain", folders / "file")
