"""Both CLIP backends on the same weights, with OpenAI's own package; skipped where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from diffusekrona.evaluation.encoders import load_clip_encoder
from diffusekrona.evaluation.pixels import CLIP_MEAN, CLIP_STD, Pixels

clip = pytest.importorskip("clip", exc_type=ImportError)
SIZES = ((300, 200), (200, 301), (227, 224), (640, 479), (225, 1000), (64, 64))
WIDTH, SIDE, PATCH, LAYERS = 64, 64, 16, 2
LAYER_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}


def noise(size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def converted(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's names and layout to transformers'."""
    ours = {new: theirs[old] for old, new in NAMES.items()}
    for old, new in NORMS.items():
        ours |= {f"{new}.{k}": theirs[f"{old}.{k}"] for k in ("weight", "bias")}
    ours["visual_projection.weight"] = theirs["visual.proj"].T
    ours["text_projection.weight"] = theirs["text_projection"].T
    for old, new in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for n in range(LAYERS):
            source, target = f"{old}.resblocks.{n}", f"{new}.encoder.layers.{n}"
            for k in ("weight", "bias"):
                parts = theirs[f"{source}.attn.in_proj_{k}"].chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    ours[f"{target}.self_attn.{letter}_proj.{k}"] = part
                for a, b in LAYER_NAMES.items():
                    ours[f"{target}.{b}.{k}"] = theirs[f"{source}.{a}.{k}"]
    return {name: tensor.contiguous() for name, tensor in ours.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same random weights as a file of OpenAI's and a folder of transformers'."""
    from clip.model import CLIP
    from clip.simple_tokenizer import SimpleTokenizer

    folder = tmp_path_factory.mktemp("clips")
    torch.manual_seed(0)
    model = CLIP(WIDTH, SIDE, LAYERS, 64, PATCH, 77, 49408, 64, 1, LAYERS)
    weights = {k: v.half().float() for k, v in model.state_dict().items()}  # it loads them so
    torch.save(weights, folder / "openai.pt")
    tower = {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": LAYERS,
        "num_attention_heads": 1, "projection_dim": WIDTH, "hidden_act": "quick_gelu",
    }  # fmt: skip
    text = {**tower, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = {**tower, "image_size": SIDE, "patch_size": PATCH}
    ours = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    ours.load_state_dict(converted(weights))
    ours.save_pretrained(folder / "transformers")
    words = SimpleTokenizer()
    merges = sorted(words.bpe_ranks, key=words.bpe_ranks.get)
    tokenizer = CLIPTokenizer(vocab=words.encoder, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder / "transformers")
    look = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "do_center_crop": True}
    look |= {"resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (folder / "transformers" / "preprocessor_config.json").write_text(json.dumps(look))
    return folder / "openai.pt", folder / "transformers"


def test_pixels_are_those_of_its_own_transform() -> None:
    theirs = clip.clip._transform(224)
    for size in SIZES:
        image = noise(size)
        torch.testing.assert_close(Pixels()([image])[0], theirs(image), atol=1e-6, rtol=0)


def test_backends_agree_on_the_same_weights(both) -> None:
    one, two = load_clip_encoder(str(both[0]), "openai"), load_clip_encoder(str(both[1]))
    images = [noise(size) for size in SIZES]
    torch.testing.assert_close(one.images(images), two.images(images), atol=1e-5, rtol=0)
    texts = ["a sks dog in the snow", "a wet teapot, 25% full!", "Father Christmas's hat"]
    torch.testing.assert_close(one.texts(texts), two.texts(texts), atol=1e-5, rtol=0)
