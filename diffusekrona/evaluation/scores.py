"""How near pictures are to a subject (CLIP-I) and to their prompts (CLIP-T), by a CLIP model.

clip = load_clip()                                  # the scorer that ships with the package
clip_i(image_features(clip, made), image_features(clip, photos))
clip_t(image_features(clip, made), text_features(clip, prompts))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ..bases.meta import trusting_no_config
from ..common.errors import UserError, reason_of
from .pixels import Pixels, read_pixels

BUNDLED_CLIP = Path(__file__).parents[1] / "pocket" / "models" / "pocket-clip"


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what prepares pictures and words for it.

    Attributes:
        name: what it was loaded by, reported with every score: scores of two models do not
            compare.
    """

    name: str
    model: Any
    processor: Pixels
    tokenizer: Any


def load_clip(name_or_path: str | None = None, device: torch.device | str = "cpu") -> Clip:
    """A CLIP model in fp32: a hub name, a folder, or by default the bundled one.

    Papers report scores of "openai/clip-vit-base-patch32". Pictures are prepared as OpenAI's own
    program does it, by `evaluation.pixels`.

    Raises:
        UserError: it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import CLIPModel, CLIPTokenizer

    name = name_or_path or BUNDLED_CLIP.name
    source = str(BUNDLED_CLIP) if name == BUNDLED_CLIP.name else name
    with trusting_no_config(f"the files of {name!r}"):
        try:
            model = CLIPModel.from_pretrained(source, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except (OSError, ValueError, SafetensorError) as error:
            reason = reason_of(error)
            raise UserError(
                f"Cannot load the CLIP model {name!r} ({reason}): give a hub name, the folder of a "
                f"model, or {BUNDLED_CLIP.name}."
            ) from error
    model = model.to(device).eval().requires_grad_(False)
    return Clip(name, model, read_pixels(source), tokenizer)


@torch.no_grad()
def image_features(clip: Clip, images: Sequence[Image.Image], batch_size: int = 32) -> torch.Tensor:
    """Unit-length features (n, d) of pictures of any size and mode, fp32 on the CPU."""
    pieces = []
    for batch in _batches(images, batch_size):
        pixels = clip.processor(batch).to(clip.model.device)
        pooled = clip.model.vision_model(pixel_values=pixels).pooler_output
        pieces.append(F.normalize(clip.model.visual_projection(pooled), dim=-1).cpu())
    return torch.cat(pieces)


@torch.no_grad()
def text_features(clip: Clip, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Unit-length features (n, d) of texts, fp32 on the CPU; words past the last token are cut."""
    pieces = []
    length = clip.model.config.text_config.max_position_embeddings
    for batch in _batches(texts, batch_size):
        tokens = clip.tokenizer(
            list(batch), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(clip.model.device)
        pooled = clip.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        pieces.append(F.normalize(clip.model.text_projection(pooled), dim=-1).cpu())
    return torch.cat(pieces)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    if not items:
        raise ValueError("nothing to score")
    return (items[start : start + size] for start in range(0, len(items), size))


def clip_i(generated: torch.Tensor, reference: torch.Tensor) -> float:
    """DreamBooth's CLIP-I: the mean cosine over all pairs of a generated and a real picture.

    Args:
        generated: unit-length features (n, d).
        reference: unit-length features (m, d) of the subject's photos.
    """
    return (generated @ reference.T).mean().item()


def clip_t(generated: torch.Tensor, prompts: torch.Tensor) -> float:
    """CLIP-T: the mean cosine of each picture with its own prompt.

    Args:
        generated: unit-length picture features (n, d).
        prompts: unit-length text features (n, d), row by row those of the pictures' prompts.

    Raises:
        ValueError: not as many prompts as pictures.
    """
    if generated.shape != prompts.shape:
        raise ValueError(f"{len(generated)} pictures for {len(prompts)} prompts")
    return (generated * prompts).sum(dim=-1).mean().item()
