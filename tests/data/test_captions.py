"""Captions: trigger words, lines, shuffled tags, dropout; all pure functions of seed and sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import with_values
from diffusekrona.data.captions import choose_caption, shuffled, with_trigger
from diffusekrona.data.examples import read_examples
from diffusekrona.data.settings import DataSettings
from diffusekrona.train_dreambooth import main


def test_tags_are_shuffled_behind_those_that_are_kept() -> None:
    orders = shuffled("sks dog, photo, red,  grass , sky", 2, seed=1)
    assert orders == shuffled("sks dog, photo, red,  grass , sky", 2, seed=1)
    assert orders != shuffled("sks dog, photo, red,  grass , sky", 2, seed=2)
    assert len(set(orders)) > 2
    for order in orders:
        tags = order.split(", ")
        assert tags[:2] == ["sks dog", "photo"]
        assert sorted(tags[2:]) == ["grass", "red", "sky"]
    assert set(shuffled("a dog on grass", 0, 0)) == {"a dog on grass"}
    assert set(shuffled("a, b", 5, 0)) == {"a, b"}


def test_dropout_and_choice_have_their_probabilities() -> None:
    counts = Counter(choose_caption(("one", "two"), 0.2, seed) for seed in range(4000))
    assert counts[""] / 4000 == pytest.approx(0.2, abs=0.02)
    assert counts["one"] / 4000 == pytest.approx(0.4, abs=0.03)
    assert choose_caption(("one", "two"), 0.2, 17) == choose_caption(("one", "two"), 0.2, 17)
    assert {choose_caption(("only",), 0.0, seed) for seed in range(9)} == {"only"}
    assert {choose_caption(("only",), 1.0, seed) for seed in range(9)} == {""}


def test_the_trigger_is_put_in_and_missed() -> None:
    assert with_trigger("a photo of [trigger]", "sks dog") == "a photo of sks dog"
    assert with_trigger("a photo", None) == "a photo"
    with pytest.raises(UserError, match="--trigger"):
        with_trigger("a photo of [trigger]", None)


def test_a_pictures_captions(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("[trigger], red\n\n  [trigger],   blue \n")
    plain = DataSettings(instance_data_dir=tmp_path, trigger="sks dog")

    def captions(**changes) -> tuple[str, ...]:
        (example,) = read_examples(with_values(plain, **changes), seed=0)
        return example.captions

    assert captions() == ("sks dog, red sks dog, blue",)
    assert captions(caption_lines=True) == ("sks dog, red", "sks dog, blue")
    orders = captions(caption_lines=True, shuffle_caption=True, keep_tokens=1)
    assert set(orders) == {"sks dog, red", "sks dog, blue"} and len(orders) == 16
    with pytest.raises(UserError, match="--trigger"):
        captions(trigger=None)


def test_no_caption_is_lost_without_a_word(tmp_path: Path, caplog) -> None:
    for name in ("one.png", "two.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "one.Txt").write_text("of a file with another suffix")
    table = tmp_path / "metadata.jsonl"
    entry = '{"file_name": "%s", "text": "%s"}\n'
    table.write_text(entry % ("train/two.png", "lost") + entry % ("one.png", "beside"))
    data = DataSettings(instance_data_dir=tmp_path, instance_prompt="a sks dog")
    captions = [example.captions for example in read_examples(data, seed=0)]
    assert captions == [("of a file with another suffix",), ("a sks dog",)]
    assert "1 of 2 captions name no picture that is used, the first train/two.png" in caplog.text
    table.write_text(entry % ("two.png", "first") + entry % ("two.png", "first"))
    assert read_examples(data, seed=0)[1].captions == ("first",)
    table.write_text(entry % ("two.png", "first") + entry % ("./two.png", "second"))
    with pytest.raises(UserError, match=r"line 2: two\.png has another caption above"):
        read_examples(data, seed=0)


def flags(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(data),
        "--instance_prompt", "[trigger], red, blue, green", "--trigger", "sks dog",
        "--output_dir", str(out), "--a2", "16", "--max_train_steps", "4", "--resolution", "16",
        "--report_to", "none", "--cpu", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_with_captions_resumes_exactly(tiny_sd1, tmp_path: Path, trained: bool) -> None:
    (data := tmp_path / "data").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (16, 16), "red").save(data / f"{name}.png")
    more = ["--shuffle_caption", "--keep_tokens", "1", "--caption_dropout", "0.5"]
    more += ["--train_text_encoder"] * trained
    whole = flags(tiny_sd1, data, tmp_path / "whole", *more)
    assert main(whole) == 0
    prompt = read_adapter(tmp_path / "whole" / "adapter.safetensors").metadata["instance_prompt"]
    assert prompt == "sks dog, red, blue, green"
    half = flags(tiny_sd1, data, tmp_path / "half", *more, "--checkpointing_steps", "2")
    assert main([*half, "--max_train_steps", "2"]) == 0
    assert main([*half, "--resume_from_checkpoint", "latest"]) == 0
    one = load_file(tmp_path / "whole" / "adapter.safetensors")
    two = load_file(tmp_path / "half" / "adapter.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
