"""Captions by an image-to-text model: a tiny BLIP with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tokenizer
from transformers import BatchFeature, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from diffusekrona.check_data import main
from diffusekrona.common.errors import UserError
from diffusekrona.data import auto_captions
from diffusekrona.data.auto_captions import REQUEST, describe, write_captions


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, words = tmp_path_factory.mktemp("blip"), tokenizer()
    small = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    more = {"sep_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = {"vocab_size": len(words), "encoder_hidden_size": 32, "projection_dim": 32}
    config = BlipConfig(
        text_config={**small, **ends, **more, **text},
        vision_config={**small, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(pictures, words).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for colour in ("red", "green"):
        Image.new("RGB", (40, 32), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "green.txt").write_text("mine")
    return tmp_path


def test_pictures_without_a_caption_get_one(blip: Path, photos: Path, capsys) -> None:
    flags = ["--caption_with", str(blip), "--trigger", "sks", "--output", str(photos / "p.html")]
    assert main([str(photos), *flags]) == 0
    caption = (photos / "red.txt").read_text()
    assert caption.startswith("[trigger], ") and len(caption) > len("[trigger], \n")
    assert (photos / "green.txt").read_text() == "mine"
    assert "Captions written: 1" in capsys.readouterr().out
    assert caption.strip().replace("[trigger]", "sks") in (photos / "p.html").read_text()
    (photos / "red.txt").unlink()
    assert write_captions({photos: None}, str(blip)) == [photos / "red.txt"]
    assert "[trigger], " + (photos / "red.txt").read_text() == caption


def test_two_pictures_of_one_name_share_the_first_ones_caption(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 32), "blue").save(photos / "red.jpg")
    monkeypatch.setattr(auto_captions, "_load", lambda name: (None, None))
    monkeypatch.setattr(auto_captions, "describe", lambda *args: str(args[2].getpixel((0, 0))))
    assert write_captions({photos: None}, "any") == [photos / "red.txt"]
    assert (photos / "red.txt").read_text() == "(0, 0, 254)\n"


def test_a_models_chat_is_cut_off() -> None:
    class Processor:
        chat_template = "{{ messages }}"

        def apply_chat_template(self, messages: Any, **options: Any) -> BatchFeature:
            assert messages[0]["content"][1]["text"] == REQUEST
            return BatchFeature({"input_ids": torch.arange(4)[None]})

        def batch_decode(self, tokens: torch.Tensor, **options: Any) -> list[str]:
            return [" ".join(map(str, tokens[0].tolist())) + "\n"]

    class Model:
        device = torch.device("cpu")

        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            return torch.cat([input_ids, torch.tensor([[7, 8]])], 1)

    assert describe(Processor(), Model(), Image.new("RGB", (8, 8))) == "7 8"


def test_a_model_that_cannot_be_loaded_is_one_line(photos: Path) -> None:
    with pytest.raises(UserError, match=r"--caption_with .*gone: cannot be loaded") as caught:
        write_captions({photos: None}, str(photos / "gone"))
    assert "\n" not in str(caught.value)
