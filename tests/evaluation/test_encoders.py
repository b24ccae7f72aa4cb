"""Features and scores of a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusekrona.common.errors import UserError
from diffusekrona.evaluation import encoders
from diffusekrona.evaluation.encoders import ClipEncoder, load_clip_encoder, refuse_torchscript
from diffusekrona.evaluation.scoring import agreement, similarity

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
def clip(clip_folder: Path) -> ClipEncoder:
    return load_clip_encoder(str(clip_folder))


def pictures() -> list[Image.Image]:
    sizes = [("RGB", (40, 32)), ("RGBA", (200, 300)), ("L", (7, 9)), ("P", (64, 64))]
    return [Image.effect_noise(size, 90).convert(mode) for mode, size in sizes]


def test_features_are_those_of_the_model(
    clip: ClipEncoder, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "TEXT_BATCH", 2)
    images = pictures()
    features = clip.images(images)
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    assert features.shape == (4, 16) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    prepare = CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = prepare([i.convert("RGB") for i in images], return_tensors="pt").pixel_values
    theirs = model.get_image_features(pixels)
    theirs = F.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    torch.testing.assert_close(features, theirs, atol=5e-3, rtol=0)

    words = ["a dog", "a longer prompt", "x" * 500]
    texts = clip.texts(words)
    torch.testing.assert_close(texts[:1], clip.texts(["a dog"]))
    assert texts.shape == (3, 16)
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(["a dog"], return_tensors="pt")
    theirs = model.get_text_features(**tokens)
    theirs = F.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    torch.testing.assert_close(texts[:1], theirs, atol=1e-5, rtol=1e-4)


def test_scores_are_mean_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    made = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    real = F.normalize(torch.randn(2, 8, generator=generator), dim=-1)
    pairs = [float(torch.dot(a, b)) for a in made for b in real]
    assert similarity(made, real).mean().item() == pytest.approx(sum(pairs) / 6, abs=1e-6)
    assert similarity(made[:1], made[:1]).item() == pytest.approx(1.0)
    own = [float(torch.dot(a, b)) for a, b in zip(made[:2], real, strict=True)]
    assert agreement(made[:2], real).tolist() == pytest.approx(own, abs=1e-6)


def test_nothing_to_score_and_no_model(clip: ClipEncoder) -> None:
    with pytest.raises(ValueError, match="nothing"):
        clip.images([])
    with pytest.raises(UserError, match="nowhere") as error:
        load_clip_encoder("./nowhere")
    assert "\n" not in str(error.value)


def test_a_program_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        refuse_torchscript(tmp_path / "clip.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "tensors.pt")
    refuse_torchscript(tmp_path / "tensors.pt")
    refuse_torchscript(Path("ViT-B/32"))
