"""Captions written by an image-to-text model of transformers, for pictures that have none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..bases.meta import trusting_no_config
from ..common.errors import UserError, reason_of
from ..common.files import write_text
from ..common.pictures import load_picture
from .caption_files import CAPTION_SUFFIXES
from .captions import TRIGGER
from .folder import find_pictures

log = logging.getLogger(__name__)

MOST_TOKENS = 75  # what CLIP reads of a caption
REQUEST = "Describe the picture in one sentence."  # to models that answer a request


def write_captions(folders: Mapping[Path, str | None], name: str) -> list[Path]:
    """Write `photo.txt` for each picture that has no caption file and no line in metadata.jsonl.

    Args:
        folders: each with its trigger, which `[trigger]` at the beginning of a caption stands for;
            None leaves that out.
        name: hub name or folder of a model that `AutoModelForImageTextToText` loads (BLIP, GIT,
            Florence, LLaVA …).

    Returns:
        The files that were written.

    Raises:
        UserError: the model cannot be loaded, or a folder has no pictures.
    """
    pictures = {
        path: trigger
        for folder, trigger in folders.items()
        for path in find_pictures(folder)[0]
        if not _has_caption(path)
    }
    if not pictures:
        return []
    processor, model = _load(name)
    written = []
    for path, trigger in pictures.items():
        target = path.with_suffix(".txt")
        if target.exists():  # of photo.jpg, and this is photo.png
            continue
        caption = describe(processor, model, load_picture(path))
        if not caption:
            log.warning("%s: %s has no words for it", path, name)
            continue
        text = f"{TRIGGER}, {caption}" if trigger else caption
        write_text(target, text + "\n")
        written.append(target)
        log.info("%s: %s", target, text)
    return written


@torch.no_grad()
def describe(processor: Any, model: Any, picture: Any) -> str:
    """One caption, without sampling: the same each time."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": REQUEST}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        start = inputs["input_ids"].shape[1]  # such models repeat the request
    else:
        inputs, start = processor(images=picture, return_tensors="pt"), 0
    tokens = model.generate(
        **inputs.to(model.device), max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1
    )
    text = processor.batch_decode(tokens[:, start:], skip_special_tokens=True)[0]
    return " ".join(text.split())


def _has_caption(picture: Path) -> bool:
    if (picture.parent / "metadata.jsonl").is_file():
        return True  # a caption file would come before its line
    return any(picture.with_suffix(suffix).exists() for suffix in CAPTION_SUFFIXES)


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with trusting_no_config(f"the files of {name!r}"):
        try:
            # Never code from the files, nor a question about it.
            options = {"trust_remote_code": False}
            model = AutoModelForImageTextToText.from_pretrained(name, **options).eval()
            return AutoProcessor.from_pretrained(name, **options), model
        except (OSError, ValueError) as error:
            reason = reason_of(error)
            raise UserError(
                f"--caption_with {name}: cannot be loaded ({reason}): give the hub name or the "
                "folder of an image-to-text model."
            ) from error
