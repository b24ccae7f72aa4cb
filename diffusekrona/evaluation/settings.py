"""What the evaluation compares, draws and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bases.settings import ReadingSettings
from ..common.command_line import parse
from ..common.errors import UserError
from ..common.settings import COUNTS, SEEDS, setting
from ..sampling.settings import DrawSettings, check_seeds, check_size


@dataclass(frozen=True)
class ComparedSettings:
    """What is compared."""

    subject_dir: Path = setting(metavar="FOLDER", help="The subject's photos.")
    class_word: str = setting(metavar="WORD", help="What the subject is, such as dog.")
    holdout_data_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        help="Photos of the subject that were not trained on: similarity is to these instead.",
    )
    pretrained_model_name_or_path: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        aliases=("--base",),
        help="Base model; by default the adapters' own.",
    )
    adapter: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="[NAME=]PATH[:WEIGHT]",
        help="Adapter file or run folder, KronA or LoRA; none: the bare base. Repeat the flag to "
        "compare several.",
    )
    identifier: str = setting("sks", metavar="WORD", help="The subject's name in prompts.")
    prompts: str = setting(
        "auto",
        metavar="LIST|FILE",
        help="object, live, pocket, pocket-colours or a file of templates; auto: object, or pocket "
        "on a bundled base.",
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3), **SEEDS, help="Draw each prompt with these seeds."
    )


@dataclass(frozen=True)
class EvaluatedModelSettings:
    """How the base is loaded."""

    vae: str | None = setting(None, metavar="NAME_OR_PATH", help="Use another VAE.")
    revision: str | None = setting(None, help="Use this revision of the base on the hub.")
    variant: str | None = setting(None, help="Use this variant of the base's files, such as fp16.")
    batch_size: int = setting(4, **COUNTS, help="Draw this many pictures at once.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, help="Precision; by default the base's on a GPU, fp16 or bf16, otherwise no."
    )
    low_vram: bool = setting(
        False, help="Keep only the active part on the GPU, and decode large pictures in tiles."
    )
    device: str | None = setting(
        None, help="Device, such as cuda, cuda:1 or cpu; by default chosen by accelerate."
    )


@dataclass(frozen=True)
class EncoderSettings:
    """The models that score."""

    clip: str = setting(
        "auto",
        metavar="NAME_OR_PATH",
        help="CLIP model; auto: ViT-B/32, or the bundled one on a bundled base.",
    )
    clip_backend: Literal["transformers", "openai"] = setting(
        "transformers", help="Library that runs it."
    )
    dino: str = setting(
        "auto",
        metavar="NAME_OR_PATH",
        help="DINO or DINOv2 model; auto: ViT-S/16; none: omit this score.",
    )


@dataclass(frozen=True)
class ScoringSettings:
    """How pictures are scored, and where the results go."""

    output_dir: Path = setting(metavar="FOLDER", help="Write pictures, results and the page here.")
    clip_t_text: Literal["class", "full"] = setting(
        "class",
        help="Score CLIP-T against the prompt with the plain class, or with the identifier too.",
    )
    score_only: bool = setting(False, help="Score existing pictures; draw none.")
    shown_seeds: int = setting(
        2, **COUNTS, metavar="N", help="Show this many seeds of each prompt on the page."
    )


@dataclass(frozen=True)
class EvaluateSettings:
    """All settings of the evaluation, by group."""

    compared: ComparedSettings
    drawing: DrawSettings
    model: EvaluatedModelSettings
    reading: ReadingSettings
    encoders: EncoderSettings
    scoring: ScoringSettings


def parse_settings(argv: Sequence[str] | None = None) -> EvaluateSettings:
    """The evaluation's settings. Raises UserError, naming the flag."""
    settings = parse(
        EvaluateSettings,
        argv,
        prog="diffusekrona.evaluate",
        description="CLIP-I, CLIP-T, DINO and diversity of fine-tuned subjects, with intervals.",
    )
    check_size(settings.drawing)
    check_seeds(settings.compared.seeds)
    if not settings.compared.adapter:
        raise UserError("Nothing to compare: give --adapter PATH, or --adapter none for the base.")
    return settings
