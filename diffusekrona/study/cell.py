"""One cell of a study: what decides its outcome, and where it is stored.

A cell's folder is named after a hash of everything that decides its training run. A folder in it,
named after what decides its pictures, holds them and `result.json`, which is written last. So a
finished cell is never run again, one that was killed resumes from its last checkpoint and its
pictures, other prompts or seeds draw from the run that is there, and other scoring models score the
pictures that are there. Neither the study nor the place in its grid is in the names: studies that
keep their cells in one folder share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from ..adapters.methods import METHODS
from ..bases.settings import ReadingSettings
from ..common.errors import UserError
from ..common.json_files import read_json
from ..common.settings import options_of
from ..training.settings import TrainSettings
from .grid import Flags, Study, Subject

Number = Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)]  # whose squares can be added up
_MOST_PARAMETERS = 10**15
RESULT, LOG = "result.json", "log.txt"
# How a base is read, as flags of the study: drawing heeds them as training does.
READING = tuple(field.name for field in fields(ReadingSettings))


@dataclass(frozen=True)
class Scoring:
    """How every cell is drawn and scored.

    Attributes:
        prompts: list name or file; seeds: of the pictures, the same for all cells.
        clip, dino, reader: of scoring models, resolved; dino and reader may be None.
        precision: that pictures are drawn in: "no", "fp16" or "bf16"; None: the base's on a
            GPU, else no.
        batch_size, low_vram: pictures at once, and no more than the model at work on a GPU; they
            change the last bit at most.
        revision, variant, vae: of the base, as for training.
        resolution: sides of the pictures in pixels; None: the base's own.
        scheduler: the sampler, by its name in `SCHEDULERS`; None: the base's own.
        reading: settings in `READING` that the whole study has.
    """

    base: str
    prompts: str
    _: KW_ONLY
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 25
    guidance: float = 7.0
    clip: str = "pocket-clip"
    clip_backend: str = "transformers"
    dino: str | None = None
    reader: str | None = None
    precision: str | None = None
    batch_size: int = 4
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    low_vram: bool = False
    resolution: int | None = None
    scheduler: str | None = None
    reading: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run. `flags` of None is the bare base, which is drawn and scored but not trained.

    Attributes:
        arm, labels: its place in the study's grid.
        texts: the prompts' templates, so that editing their file makes other pictures.
        photos: content hashes of the subject's pictures and caption files, and of its masks where
            they are used; held_out: of the pictures that similarity is measured against, none
            where it is those trained on.
        base_files, scorers: fingerprints of the base and of the scoring models, where they are
            local folders.
    """

    study: str
    arm: str
    labels: tuple[str, ...]
    subject: Subject
    seed: int
    flags: Flags | None
    checkpoints: tuple[int, ...]
    scoring: Scoring
    texts: tuple[str, ...]
    photos: tuple[str, ...]
    base_files: str | None = None
    scorers: tuple[str | None, ...] = ()
    device: str | None = None
    held_out: tuple[str, ...] = ()

    def key(self) -> str:
        """A hash of what decides the training run; a flag at its default is as good as none."""
        flags = self.flags
        if flags is not None:
            rate = METHODS[flags.get("adapter_type", "krona")].learning_rate
            defaults = {k: default_of(k) for k in flags} | {"learning_rate": rate}
            flags = {k: v for k, v in flags.items() if v != defaults[k]}
        base = self.base_files or self.scoring.base  # a folder may be moved
        words = [self.subject.class_word, self.subject.identifier]
        return _hash([base, flags, self.seed, self.checkpoints, words, self.photos])

    def drawn_by(self) -> str:
        """A hash of what decides the pictures of a run."""
        j = self.scoring
        parts = [
            self.texts,
            j.seeds,
            j.steps,
            j.guidance,
            j.precision,
            j.revision,
            j.variant,
            j.vae,
        ]
        more = (j.resolution, j.scheduler, j.reading or None)
        return _hash(parts + [each for each in more if each is not None])

    def scored_by(self) -> str:
        """A hash of what scores the pictures."""
        scoring = self.scoring
        names = [scoring.clip, scoring.clip_backend, scoring.dino, scoring.reader]
        return _hash([*names, self.scorers, *([self.held_out] if self.held_out else [])])

    def title(self) -> str:
        """For people."""
        if self.flags is None:
            return f"base · {self.subject.name}"
        return " · ".join((self.arm, *self.labels, self.subject.name, f"seed {self.seed}"))

    def folder(self, root: Path) -> Path:
        """Of this cell among the others in `root`."""
        from ..common.files import slug

        kind = "base" if self.flags is None else self.flags.get("adapter_type", "krona")
        return root / f"{slug(f'{kind} {self.subject.name} seed {self.seed}', 60)}-{self.key()}"

    def scored(self, root: Path) -> Path:
        """Folder of this cell's pictures and result."""
        return self.folder(root) / f"judged-{self.drawn_by()}"


def default_of(flag: str) -> Any:
    """Of a training flag; None for one that does not exist."""
    option = options_of(TrainSettings).get(flag)
    return option.default if option else None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def cells_of(
    study: Study, subjects: Sequence[Subject], scoring: Scoring, device: str | None = None
) -> list[Cell]:
    """Every cell of a study, the bare base's first, then by seed, so that an early stop leaves
    whole grids.

    Raises:
        UserError: a subject without pictures, or fewer than the study trains on; a number of
            pictures that is not one.
    """
    from ..bases.fingerprint import fingerprint_of
    from ..common.pictures import content_key
    from ..data.masks import mask_files
    from ..evaluation.prompts import get_prompts

    texts = tuple(f"{p.kind}:{p.template}" for p in get_prompts(scoring.prompts))
    base_files = fingerprint_of(scoring.base)
    scorers = tuple(map(fingerprint_of, (scoring.clip, scoring.dino, scoring.reader)))
    data = {s.name: _content_of(Path(s.folder)) for s in subjects}
    masks = {s.name: tuple(map(content_key, mask_files(Path(s.folder)))) for s in subjects}
    held = {s.name: _content_of(Path(s.held_out))[1] if s.held_out else () for s in subjects}

    def cell(arm: str, labels: tuple[str, ...], subject: Subject, seed: int, flags: Any) -> Cell:
        count, photos = data[subject.name]
        least = (flags or {}).get("pictures", 1)
        if type(least) is not int or least < 1:
            raise UserError(f"pictures must be a positive whole number, not {least!r}.")
        if least > count:
            raise UserError(f"{subject.name} has {count} pictures, the study needs {least}.")
        if flags and flags.get("masked_loss"):
            photos += masks[subject.name]
        steps = () if flags is None else study.checkpoints
        return Cell(
            study.name, arm, labels, subject, seed, flags, steps, scoring, texts, photos,
            base_files, scorers, device, held[subject.name],
        )  # fmt: skip

    cells = [cell("base", (), subject, 0, None) for subject in subjects]
    for seed in study.seeds:
        for arm in study.arms:
            for labels, flags in arm.points():
                whole = {**study.flags, **flags}
                cells += [cell(arm.label, labels, subject, seed, whole) for subject in subjects]
    return cells


def _content_of(folder: Path) -> tuple[int, tuple[str, ...]]:
    """How many pictures a folder has, and hashes of them and of the captions beside them."""
    from ..common.pictures import content_key
    from ..data.caption_files import CAPTION_SUFFIXES
    from ..data.folder import find_pictures

    found, _ = find_pictures(folder)
    captions = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in CAPTION_SUFFIXES]
    return len(found), tuple(content_key(path) for path in [*found, *captions])


def finished(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The cell's result, if it has run to its end and is scored as it should be."""
    folder = cell.scored(root)
    try:
        result = read_json(folder / RESULT, CellResult)
    except UserError:  # missing, or damaged: made again
        return None
    if (result.key, result.scored_by) != (cell.key(), cell.scored_by()):
        return None
    if [point.step for point in result.points] != list(cell.checkpoints or (None,)):
        return None
    count = result.cost.get("trained_parameters") or 0
    if not (isinstance(count, int) and count < _MOST_PARAMETERS):
        return None
    if not all(_fits(cell, point) for point in result.points):
        return None
    names = [name for point in result.points for name in (*point.pictures, point.features)]
    features = [folder / point.features for point in result.points]
    try:  # names that no file can have: too long, or with a null byte
        inside = all((folder / n).resolve().is_relative_to(folder.resolve()) for n in names)
        return asdict(result) if inside and all(path.is_file() for path in features) else None
    except (OSError, ValueError):
        return None


def _fits(cell: Cell, point: PointResult) -> bool:
    """Whether the scores are those of the cell's pictures, prompt by prompt."""
    shape = (len(cell.texts), len(cell.scoring.seeds))
    diverse = point.diversity is None or len(point.diversity) == shape[0]
    rows = all(
        len(rows) == shape[0] and {len(row) for row in rows} == {shape[1]}
        for rows in point.scores.values()
    )
    return bool(point.scores) and diverse and rows and len(point.pictures) == shape[0] * shape[1]


@dataclass
class PointResult:
    """The scores of one point of a cell, prompts × seeds."""

    point: str
    step: int | None
    scores: dict[str, list[list[Number]]]
    diversity: list[Number] | None
    pictures: list[str]
    features: str


@dataclass
class CellResult:
    """What result.json holds; `title` is for people."""

    key: str
    scored_by: str
    title: str
    points: list[PointResult]
    cost: dict[str, Any]
