"""The models that score: CLIP for pictures and words, DINO for pictures alone.

Each is known by a name or a folder. Scores of two models do not compare, so results always name
which one it was. Papers report "openai/clip-vit-base-patch32" and "facebook/dino-vits16".
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image

from ..bases.bundled import BUNDLED
from ..bases.meta import trusting_no_config
from ..common.errors import UserError, reason_of
from .pixels import read_pixels
from .reader import Reader, load_reader
from .settings import EncoderSettings

PAPER_CLIP, PAPER_DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
BUNDLED_CLIP, BUNDLED_DINO, BUNDLED_READER = "pocket-clip", "pocket-dino", "pocket-reader"
BATCH, TEXT_BATCH = 32, 256


@dataclass(frozen=True)
class Encoder:
    """A scorer of pictures of any size and mode.

    Attributes:
        name: what it was loaded by, reported with every score.
        images: gives unit-length features (n, d), fp32, on the CPU.
    """

    name: str
    images: Callable[[Sequence[Image.Image]], torch.Tensor]


@dataclass(frozen=True)
class ClipEncoder(Encoder):
    """A scorer of pictures and words.

    Attributes:
        texts: gives unit-length features (n, d), as `images`; words past the last token are cut.
    """

    texts: Callable[[Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class Scorers:
    """The models that score, each but CLIP optional.

    Attributes:
        reader: predicts the labels of the bundled bases' world; of no use for photographs.
    """

    clip: ClipEncoder
    dino: Encoder | None = None
    reader: Reader | None = None

    @property
    def names(self) -> dict[str, str | None]:
        """What each was loaded by, for reports."""
        reader = BUNDLED_READER if self.reader else None
        return {"clip": self.clip.name, "dino": self.dino and self.dino.name, "reader": reader}


@dataclass(frozen=True)
class ScorerNames:
    """By what the scorers are loaded."""

    clip: str
    dino: str | None
    reader: str | None
    clip_backend: str = "transformers"


def choose_names(encoders: EncoderSettings, bundled_base: bool) -> tuple[ScorerNames, str]:
    """ "auto" and "none" to the models to load, and a note on DINO where it is left out, else "".

    The bundled scorers suit the bundled bases' small drawings, the paper's suit photographs. The
    reader knows the bundled bases' world only.
    """
    clip, dino = encoders.clip, encoders.dino
    if clip == "auto":
        clip = BUNDLED_CLIP if bundled_base else PAPER_CLIP
    if dino == "auto":
        dino = BUNDLED_DINO if bundled_base else PAPER_DINO
    reader = BUNDLED_READER if bundled_base else None
    names = ScorerNames(clip, None if dino == "none" else dino, reader, encoders.clip_backend)
    return names, "DINO was left out as asked (--dino none)." if dino == "none" else ""


def load_scorers(names: ScorerNames, device: torch.device | str = "cpu") -> Scorers:
    """All of them.

    Raises:
        UserError: one that cannot be loaded.
    """
    return Scorers(
        load_clip_encoder(names.clip, names.clip_backend, device),
        load_dino_encoder(names.dino, device) if names.dino else None,
        load_reader(BUNDLED / names.reader).to(device) if names.reader else None,
    )


def load_clip_encoder(
    name: str, backend: str = "transformers", device: torch.device | str = "cpu"
) -> ClipEncoder:
    """CLIP by hub name, folder or the bundled one's name; with "openai" by OpenAI's own package.

    Pictures are prepared as OpenAI's own program does it, by `evaluation.pixels`.

    Raises:
        UserError: it, or the package, cannot be loaded.
    """
    if backend == "openai":
        return _openai_clip(name, device)
    from safetensors import SafetensorError
    from transformers import CLIPModel, CLIPTokenizer

    source = str(BUNDLED / name) if name == BUNDLED_CLIP else name
    with trusting_no_config(f"the files of {name!r}"):
        try:
            model = cast(Any, CLIPModel.from_pretrained(source, dtype=torch.float32))
            tokenizer = cast(Any, CLIPTokenizer.from_pretrained(source))
        except (OSError, ValueError, SafetensorError) as error:
            reason = reason_of(error)
            raise UserError(
                f"Cannot load the CLIP model {name!r} ({reason}): give a hub name, the folder of a "
                f"model, or {BUNDLED_CLIP}."
            ) from error
    model = model.to(device).eval().requires_grad_(False)
    pixels, length = read_pixels(source), model.config.text_config.max_position_embeddings

    def encode_images(batch: Sequence[Image.Image]) -> torch.Tensor:
        pooled = model.vision_model(pixel_values=pixels(batch).to(device)).pooler_output
        return model.visual_projection(pooled)

    def encode_texts(batch: Sequence[str]) -> torch.Tensor:
        options = {"padding": True, "truncation": True, "max_length": length}
        tokens = tokenizer(list(batch), return_tensors="pt", **options).to(device)
        pooled = model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return model.text_projection(pooled)

    return ClipEncoder(
        name,
        lambda pictures: in_batches(encode_images, batches(pictures)),
        lambda texts: in_batches(encode_texts, batches(texts, TEXT_BATCH)),
    )


def _openai_clip(name: str, device: torch.device | str) -> ClipEncoder:
    try:
        import clip  # pyright: ignore[reportMissingImports] # optional
    except ImportError as error:
        raise UserError(
            "--clip_backend openai needs OpenAI's clip package and torchvision: install them from "
            "github.com/openai/CLIP, or use --clip_backend transformers, which scores the same."
        ) from error
    name = {PAPER_CLIP: "ViT-B/32", BUNDLED_CLIP: "ViT-B/32"}.get(name, name)
    refuse_torchscript(Path(name))
    try:
        model, prepare = clip.load(name, device=device, jit=False)
    except (RuntimeError, OSError, UnpicklingError) as error:
        reason = reason_of(error)
        raise UserError(f"OpenAI's clip package cannot load {name!r}: {reason}") from error
    model = model.float().eval()

    def images(pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = [torch.stack([prepare(p) for p in batch]) for batch in batches(pictures)]
        return in_batches(lambda batch: model.encode_image(batch.to(device)), pixels)

    def texts(words: Sequence[str]) -> torch.Tensor:
        tokens = clip.tokenize(list(words), truncate=True).split(TEXT_BATCH)
        return in_batches(lambda batch: model.encode_text(batch.to(device)), tokens)

    return ClipEncoder(f"{name} (OpenAI's clip)", images, texts)


def refuse_torchscript(path: Path) -> None:
    """Raise UserError for a file that holds a program of TorchScript, which OpenAI's package would
    run; what it downloads itself, it checks. Of other files it loads tensors alone."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:  # nor does torch open it
        return
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"--clip {path} is a TorchScript program, which can run code when it is opened: give "
            "the model's name, or a file of its tensors."
        )


def load_dino_encoder(name: str, device: torch.device | str = "cpu") -> Encoder:
    """DINO, DINOv2 or any other vision transformer whose first token represents the picture.

    Features are that token after the last norm (of models without one, the pooled output).

    Raises:
        UserError: it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    source = str(BUNDLED / name) if name == BUNDLED_DINO else name
    pixels = read_pixels(source)
    with trusting_no_config(f"the files of {name!r}"):
        try:
            # Never code from the files, nor a question about it.
            model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            reason = reason_of(error)
            raise UserError(
                f"Cannot load the image encoder {name!r} ({reason}): give a hub name, the folder "
                f"of a model, or {BUNDLED_DINO}."
            ) from error
    model = model.to(device).eval().requires_grad_(False)

    def encode(batch: Sequence[Image.Image]) -> torch.Tensor:
        return _first_token(model(pixel_values=pixels(batch).to(device)))

    return Encoder(name, lambda pictures: in_batches(encode, batches(pictures)))


def _first_token(output: Any) -> torch.Tensor:
    if output.last_hidden_state.dim() == 3:
        return output.last_hidden_state[:, 0]
    return output.pooler_output.flatten(1)


def batches(items: Sequence[Any], size: int = BATCH) -> list[Sequence[Any]]:
    """`items` in pieces of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.no_grad()
def in_batches(encode: Callable[[Any], torch.Tensor], pieces: Sequence[Any]) -> torch.Tensor:
    """Unit-length features of all pieces, on the CPU.

    Raises:
        ValueError: there is nothing to encode.
    """
    if not len(pieces):
        raise ValueError("nothing to score")
    return torch.cat([F.normalize(encode(piece).float(), dim=-1).cpu() for piece in pieces])
