"""Tiny scoring models of the genuine classes, saved as folders."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_models
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from diffusekrona.evaluation.pixels import CLIP_MEAN, CLIP_STD

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def save_clip(folder: Path) -> Path:
    """A CLIP of 32 × 32 pixels that reads the tiny tokenizer's words; returns the folder."""
    torch.manual_seed(0)
    vision = {**_VISION, "projection_dim": 64}
    text = tiny_models.text_config().to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    CLIPModel(config).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    look = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
    size = {"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True}
    return _prepare(folder, {**look, **size})


def save_dino(folder: Path) -> Path:
    """A ViT whose preparation is described as DINO's port describes it; returns the folder."""
    torch.manual_seed(1)
    ViTModel(ViTConfig(**_VISION)).save_pretrained(folder)
    look = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
    return _prepare(folder, {**look, "size": {"height": 32, "width": 32}})


def _prepare(folder: Path, config: dict) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder
