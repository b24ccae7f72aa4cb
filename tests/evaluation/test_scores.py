"""CLIP-I, CLIP-T and the quick start's picture, by a tiny CLIP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffusekrona import KronAConfig, quickstart, save_adapter
from diffusekrona.bases import loading
from diffusekrona.common.errors import UserError
from diffusekrona.evaluation import scores
from diffusekrona.evaluation.encoders import refuse_torchscript
from diffusekrona.sampling.grids import read_recipe

SETTINGS = {
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = tiny_models.text_config().to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).half().save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> scores.Clip:
    return scores.load_clip(str(clip_folder))


def pictures() -> list[Image.Image]:
    sizes = [("RGB", (40, 32)), ("RGBA", (200, 300)), ("L", (7, 9)), ("P", (64, 64))]
    return [Image.effect_noise(size, 90).convert(mode) for mode, size in sizes]


def test_features_are_those_of_the_model(clip: scores.Clip, clip_folder: Path) -> None:
    images = pictures()
    features = scores.image_features(clip, images, batch_size=3)
    assert features.shape == (4, 16) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    prepare = CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = prepare([i.convert("RGB") for i in images], return_tensors="pt").pixel_values
    theirs = clip.model.get_image_features(pixels)
    theirs = F.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    torch.testing.assert_close(features, theirs, atol=5e-3, rtol=0)

    words = ["a dog", "a longer prompt", "x" * 500]
    texts = scores.text_features(clip, words, batch_size=2)
    torch.testing.assert_close(texts[:1], scores.text_features(clip, ["a dog"]))
    assert texts.shape == (3, 16)
    tokens = clip.tokenizer(["a dog"], return_tensors="pt")
    theirs = clip.model.get_text_features(**tokens)
    theirs = F.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    torch.testing.assert_close(texts[:1], theirs, atol=1e-5, rtol=1e-4)


def test_scores_are_mean_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    made = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    real = F.normalize(torch.randn(2, 8, generator=generator), dim=-1)
    pairs = [float(torch.dot(a, b)) for a in made for b in real]
    assert scores.clip_i(made, real) == pytest.approx(sum(pairs) / 6, abs=1e-6)
    assert scores.clip_i(made[:1], made[:1]) == pytest.approx(1.0)
    own = [float(torch.dot(a, b)) for a, b in zip(made[:2], real, strict=True)]
    assert scores.clip_t(made[:2], real) == pytest.approx(sum(own) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="3 pictures for 2 prompts"):
        scores.clip_t(made, real)


def test_nothing_to_score_and_no_model(clip: scores.Clip) -> None:
    with pytest.raises(ValueError, match="nothing"):
        scores.image_features(clip, [])
    with pytest.raises(UserError, match="nowhere") as error:
        scores.load_clip("./nowhere")
    assert "\n" not in str(error.value)


def test_a_program_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        refuse_torchscript(tmp_path / "clip.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "tensors.pt")
    refuse_torchscript(tmp_path / "tensors.pt")
    refuse_torchscript(Path("ViT-B/32"))


def test_the_quick_start_draws_the_comparison(
    clip_folder: Path,
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet")
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    save_adapter(unet, tmp_path / "run" / "adapter.safetensors", metadata={"base_model": "pocket"})
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.effect_noise((50, 70), 90).save(tmp_path / "photos" / f"{number}.png")
    flags = {
        "--adapter": tmp_path / "run",
        "--photos": tmp_path / "photos",
        "--class_word": "owl",
        "--pretrained_model_name_or_path": tiny_sd1,
        "--clip": clip_folder,
        "--num_inference_steps": 2,
        "--output": tmp_path / "picture.png",
    }
    monkeypatch.setattr(loading, "quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["quickstart", *(str(x) for f in flags.items() for x in f)])
    quickstart.main()
    reported = capsys.readouterr().out
    assert (
        "an owl …" in reported
        and "a sks owl …" in reported
        and str(tmp_path / "picture.png") in reported
    )
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width > 5 * 192 and image.height > 4 * 192
    recipe = read_recipe(tmp_path / "picture.png")
    assert recipe["adapters"][0]["file"] == "run/adapter.safetensors"
    assert recipe["seeds"] == [0, 1, 2, 3]


def test_the_quick_start_does_not_rename_a_folder(tmp_path: Path) -> None:
    flags = ("--adapter", "none", "--photos", "none", "--class_word", "owl")
    with pytest.raises(UserError, match="is a folder"):
        quickstart.main([*flags, "--output", str(tmp_path)])
