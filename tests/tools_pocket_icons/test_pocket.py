"""The embedded models: complete, small, able to judge and to draw. No network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from tools.pocket_icons.concepts import CONCEPTS, FIXED_PROMPTS, RARE_WORDS, article

MODELS = Path(__file__).parents[2] / "diffusekrona" / "pocket" / "models"
SHEETS = Path(__file__).parent / "sheets"
SUBJECTS = Path(__file__).parents[2] / "data"
MB = 1e6


def contents(folder: Path) -> dict[str, int]:
    """Bytes of each distinct content under `folder`, by hash: git stores equal files once."""
    files = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {hashlib.sha256(data).hexdigest(): len(data) for data in files}


@pytest.fixture(scope="module")
def sd():
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "pocket")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def sdxl():
    pipeline = StableDiffusionXLPipeline.from_pretrained(MODELS / "pocket-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def scorer():
    clip = CLIPModel.from_pretrained(MODELS / "pocket-clip", dtype=torch.float32).eval()
    return clip, CLIPTokenizer.from_pretrained(MODELS / "pocket-clip")


def tiles(name: str) -> tuple[list[Image.Image], list]:
    """The 64 x 64 tiles of a sheet and their labels."""
    sheet = Image.open(SHEETS / f"{name}.png").convert("RGB")
    meta = json.loads((SHEETS / f"{name}.json").read_text())
    columns = meta["columns"]
    corners = [(i % columns * 64, i // columns * 64) for i in range(len(meta["labels"]))]
    return [sheet.crop((x, y, x + 64, y + 64)) for x, y in corners], meta["labels"]


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """(N, 3, 64, 64) in -1..1."""
    array = np.stack([np.asarray(im.convert("RGB").resize((64, 64), 3)) for im in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def embed(clip: CLIPModel, images: list[Image.Image]) -> torch.Tensor:
    """Unit-length image embeddings (N, 128)."""
    pooled = clip.vision_model(pixel_values=pixels(images)).pooler_output
    return torch.nn.functional.normalize(clip.visual_projection(pooled), dim=-1)


def test_sizes():
    assert sum(contents(MODELS / "pocket").values()) <= 25 * MB
    assert sum(contents(MODELS).values()) <= 45 * MB


def test_parts_that_both_bases_use_are_equal():
    for name in ("vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        part = MODELS / "pocket-sdxl" / name
        assert part.is_dir() and not part.is_symlink()
        assert contents(part) == contents(MODELS / "pocket" / name.removesuffix("_2"))


def test_tokenizer(sd):
    for word in (*RARE_WORDS, *CONCEPTS):
        assert len(sd.tokenizer.tokenize(word)) == 1, word
    assert sd.tokenizer.tokenize("a photo of a sks dog") == [
        f"{w}</w>" for w in ("a", "photo", "of", "a", "sks", "dog")
    ]
    strange = sd.tokenizer("Čapek's 3 zebras — überall!", return_tensors="pt").input_ids
    assert strange.max() < len(sd.tokenizer)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_attention_widths_take_published_factors(name, request):
    unet = request.getfixturevalue(name).unet
    layers = [m for m in unet.modules() if isinstance(m, Attention)]
    assert len(layers) >= 10
    assert {m.is_cross_attention for m in layers} == {True, False}
    for layer in layers:
        for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
            for a1, a2 in ((4, 64), (8, 64), (64, 8), (64, 4)):
                assert linear.out_features % a1 == 0 and linear.in_features % a2 == 0


def test_sdxl_is_sdxl(sdxl):
    config = sdxl.unet.config
    assert config.addition_embed_type == "text_time"
    widths = sdxl.text_encoder.config.hidden_size + sdxl.text_encoder_2.config.hidden_size
    assert config.cross_attention_dim == widths
    pooled = sdxl.text_encoder_2.config.projection_dim
    time_ids = 6 * config.addition_time_embed_dim
    assert config.projection_class_embeddings_input_dim == time_ids + pooled
    assert type(sdxl.text_encoder_2).__name__ == "CLIPTextModelWithProjection"


@torch.no_grad()
def test_scorer_names_objects(scorer):
    clip, tokenizer = scorer
    images, nouns = tiles("named")
    names = list(CONCEPTS)
    texts = [f"a photo of {article(n)}" for n in names]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    pooled = clip.text_model(input_ids=ids).pooler_output
    text = torch.nn.functional.normalize(clip.text_projection(pooled), dim=-1)
    nearest = (embed(clip, images) @ text.T).argmax(1)
    right = np.mean([names[i] == noun for i, noun in zip(nearest, nouns, strict=True)])
    assert len(images) >= 100
    assert right >= 0.8, f"{right:.1%} of {len(images)} held-out composites named"


def test_scorer_tells_a_subject_from_its_class(scorer):
    """In a style never trained on: pictures of one individual against others of its class."""
    images, labels = tiles("individuals")
    near = embed(scorer[0], images)
    similar = near @ near.T
    nouns = np.array([noun for noun, _ in labels])
    ids = np.array([f"{noun} {i}" for noun, i in labels])
    same = (ids[:, None] == ids) & ~np.eye(len(ids), dtype=bool)
    rivals = (nouns[:, None] == nouns) & (ids[:, None] != ids)
    own, others = float(similar[same].mean()), float(similar[rivals].mean())
    assert own - others >= 0.25, f"own {own:.2f}, others of the class {others:.2f}"
    wins = []  # over all (picture, own picture, rival picture): is the own one nearer?
    for i in range(len(ids)):
        wins.append((similar[i][same[i]][:, None] > similar[i][rivals[i]][None]).float().mean())
    assert np.mean(wins) >= 0.9, f"own picture nearer in {np.mean(wins):.1%}"


@pytest.mark.parametrize("subject", ["dog", "cat", "teapot"])
def test_sample_subjects(subject, scorer):
    files = sorted((SUBJECTS / subject / "input").glob("*.png"))
    assert 4 <= len(files) <= 5
    images = [Image.open(f) for f in files]
    assert all(min(im.size) >= 256 for im in images)
    near = embed(scorer[0], images)
    cosines = (near @ near.T)[~torch.eye(len(near), dtype=torch.bool)]
    assert cosines.mean() >= 0.6


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_draws_what_is_asked(name, request, scorer):
    """Eight of the fixed prompts: each picture is nearest to its own prompt of all 24."""
    pipeline = request.getfixturevalue(name)
    prompts = FIXED_PROMPTS[::3]
    images = pipeline(
        list(prompts),
        num_inference_steps=20,
        guidance_scale=5.0,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(0) for _ in prompts],
    ).images
    for image in images:
        assert image.size == (64, 64)
        assert np.asarray(image).std() > 10
    clip, tokenizer = scorer
    ids = tokenizer(list(FIXED_PROMPTS), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = clip.text_model(input_ids=ids).pooler_output
        text = torch.nn.functional.normalize(clip.text_projection(pooled), dim=-1)
        nearest = (embed(clip, images) @ text.T).argmax(1)
    found = [FIXED_PROMPTS[i] == p for i, p in zip(nearest, prompts, strict=True)]
    assert sum(found) >= 7, list(zip(prompts, found, strict=True))


def test_half_precision_weights_are_finite():
    from safetensors.torch import load_file

    for path in MODELS.rglob("*.safetensors"):
        for key, tensor in load_file(path).items():
            assert tensor.dtype == torch.float16, (path, key)
            assert torch.isfinite(tensor).all(), (path, key)
