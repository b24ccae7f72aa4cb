"""What `diffusekrona choose` compares, and by which preference it chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bases.settings import ReadingSettings
from ..common.command_line import parse
from ..common.errors import UserError
from ..common.settings import SEEDS, setting
from ..sampling.settings import DrawSettings, check_seeds, check_size
from .choice import Preference
from .settings import EncoderSettings, EvaluatedModelSettings

# What a choice leaves in the run's folder.
BEST, CHOICE, CHOICE_FOLDER = "best.safetensors", "choice.json", "choice"
_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


@dataclass(frozen=True)
class CandidatesSettings:
    """What is compared."""

    run: Path = setting(
        positional=True, metavar="RUN", help="Folder of a training run with its checkpoints."
    )
    prefer: Preference = setting(
        "likeness",
        help="likeness: the most like the subject among those that follow prompts as the base "
        "does; obedience: the most obedient among those that learned the subject; balance: both.",
    )
    weights: tuple[float, ...] = setting(
        (1.0, 0.85, 0.7),
        above=0,
        metavar="WEIGHT",
        help="Try every checkpoint at these weights (OFT only at 1).",
    )
    every: int | None = setting(
        None,
        minimum=1,
        metavar="STEPS",
        help="Compare only checkpoints at multiples of this many steps, and the last.",
    )
    budget: str | None = setting(
        None,
        metavar="TIME",
        help="Begin no candidate after this time, such as 10min, 90s or 1h. The last checkpoint "
        "comes first, then those in the middle of the gaps; the first weight before the others.",
    )
    bootstrap_seed: int = setting(0, **SEEDS, help="Seed of the intervals.")


@dataclass(frozen=True)
class SubjectSettings:
    """The subject; by default as the run was trained."""

    subject_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        help="Pictures that the run was trained on; for a run with several subjects, the folder of "
        "one of them.",
    )
    holdout_data_dir: Path | None = setting(
        None, metavar="FOLDER", help="Photos of the subject that were not trained on."
    )
    class_word: str | None = setting(
        None, metavar="WORD", help="What the subject is; by default read off the instance prompt."
    )
    identifier: str | None = setting(
        None, metavar="WORD", help="Its name in prompts; by default read off the instance prompt."
    )
    prompts: str = setting(
        "auto",
        metavar="LIST|FILE",
        help="object, live, pocket, pocket-colours or a file of templates; auto: object, or pocket "
        "on a bundled base.",
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3), **SEEDS, help="Draw each prompt with these seeds."
    )
    pretrained_model_name_or_path: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        aliases=("--base",),
        help="Base model; by default the run's own.",
    )


@dataclass(frozen=True)
class ChooseSettings:
    """All settings of the choice, by group."""

    candidates: CandidatesSettings
    subject: SubjectSettings
    drawing: DrawSettings
    model: EvaluatedModelSettings
    reading: ReadingSettings
    encoders: EncoderSettings


def parse_settings(argv: Sequence[str] | None = None) -> ChooseSettings:
    """The settings of a choice. Raises UserError, naming the flag."""
    settings = parse(
        ChooseSettings,
        argv,
        prog="diffusekrona.choose",
        description="Choose the checkpoint and the weight of a run by measured scores.",
    )
    check_size(settings.drawing)
    check_seeds(settings.subject.seeds)
    weights = settings.candidates.weights
    if not weights or len(set(weights)) < len(weights):
        raise UserError("--weights must be different numbers, at least one.")
    seconds_of(settings.candidates.budget)
    return settings


def seconds_of(budget: str | None) -> float | None:
    """ "10min", "90s" or "1.5h" in seconds; a bare number is minutes. Raises UserError."""
    if budget is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(s|sec|m|min|h)?", budget.strip())
    if not match:
        raise UserError(f"--budget {budget}: give a time such as 10min, 90s or 1h.")
    return float(match[1]) * _UNITS[match[2] or "min"]


def subject_of(prompt: str) -> tuple[str, str] | None:
    """Identifier and class word in an instance prompt such as "a photo of a sks dog"; None if the
    two cannot be read off it."""
    plain = r"(?:(?:an?|the) )?(?:(?:photo|picture|image|drawing) of (?:(?:an?|the) )?)?"
    match = re.fullmatch(rf"{plain}(\S+) ([^,.]+?)[.,]?", prompt.strip(), re.IGNORECASE)
    return (match[1], match[2].strip()) if match else None
