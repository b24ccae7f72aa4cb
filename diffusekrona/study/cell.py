"""One cell of a study: an ordinary training run, its pictures, their scores.

A cell's folder is named after a hash of everything that decides its outcome, and `result.json` is
written last. So a finished cell is never run again, one that was killed goes on from its last
checkpoint and its pictures, and a changed setting is another cell.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .grid import Flags, Study, Subject

RESULT, LOG = "result.json", "log.txt"


@dataclass(frozen=True)
class Judging:
    """How every cell is drawn and scored.

    Attributes:
        prompts: list name or file; seeds: of the pictures, the same for all cells.
        clip, dino: of scoring models, resolved; dino may be None.
    """

    base: str
    prompts: str
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 25
    guidance: float = 7.0
    clip: str = "pocket-clip"
    clip_backend: str = "transformers"
    dino: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run. `flags` of None is the bare base, which is drawn and scored but not trained.

    Attributes:
        arm, labels: its place in the study's grid.
        texts: the prompts' templates, so that editing their file makes other cells.
        photos: content hashes of the subject's pictures and caption files.
        models: fingerprints of base and scorers, where they are local folders.
    """

    study: str
    arm: str
    labels: tuple[str, ...]
    subject: Subject
    seed: int
    flags: Flags | None
    checkpoints: tuple[int, ...]
    judging: Judging
    texts: tuple[str, ...]
    photos: tuple[str, ...]
    models: tuple[str | None, ...] = ()
    device: str | None = None

    def key(self) -> str:
        """A hash of what decides the outcome; neither the study's name nor labels do."""
        content = asdict(self)
        for name in ("study", "arm", "labels", "device"):
            del content[name]
        del content["subject"]["folder"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def title(self) -> str:
        """For people."""
        if self.flags is None:
            return f"base · {self.subject.name}"
        return " · ".join((self.arm, *self.labels, self.subject.name, f"seed {self.seed}"))

    def folder(self, root: Path) -> Path:
        from ..inference import slug

        return root / "cells" / f"{slug(self.title(), 60)}-{self.key()}"


def cells_of(
    study: Study, subjects: Sequence[Subject], judging: Judging, device: str | None = None
) -> list[Cell]:
    """Every cell of a study, the bare base's first, then by seed, so that an early stop leaves
    whole grids.

    Raises:
        UserError: a subject without pictures, or fewer than the study trains on.
    """
    from ..evaluation.fingerprint import fingerprint_of
    from ..prompts import get_prompts

    texts = tuple(f"{p.kind}:{p.template}" for p in get_prompts(judging.prompts))
    models = tuple(map(fingerprint_of, (judging.base, judging.clip, judging.dino)))
    data = {subject.name: _content_of(Path(subject.folder)) for subject in subjects}

    def cell(arm: str, labels: tuple[str, ...], subject: Subject, seed: int, flags: Any) -> Cell:
        count, photos = data[subject.name]
        least = (flags or {}).get("pictures", 1)
        if least > count:
            raise UserError(f"{subject.name} has {count} pictures, the study wants {least}.")
        steps = () if flags is None else study.checkpoints
        return Cell(
            study.name, arm, labels, subject, seed, flags, steps, judging, texts, photos, models,
            device,
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
    from ..data import CAPTION_SUFFIXES, find_pictures
    from ..pictures import content_key

    found, _ = find_pictures(folder)
    captions = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in CAPTION_SUFFIXES]
    return len(found), tuple(content_key(path) for path in [*found, *captions])


def finished(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The cell's result, if it has run to its end."""
    try:
        result = json.loads((cell.folder(root) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("key") == cell.key() else None


def run_cell(cell: Cell, root: Path) -> dict[str, Any]:
    """Train, draw and score one cell, or take up where an earlier try left it.

    Returns:
        What result.json holds: for each point (a checkpoint, or the end) its scores by metric,
        prompts × seeds, and what training cost.

    Raises:
        UserError: training refused or diverged, or was stopped.
    """
    if (done := finished(cell, root)) is not None:
        return done
    from ..files import write_text
    from .judging import judge

    folder = cell.folder(root)
    run = train(cell, folder) if cell.flags is not None else None
    points = []
    for step in cell.checkpoints or (None,):
        adapter = run and (run / f"checkpoint-{step}" if step else run)
        points.append(judge(cell, folder, adapter, step))
    result = {"key": cell.key(), "title": cell.title(), "points": points, "cost": _cost(run)}
    write_text(folder / RESULT, json.dumps(result, indent=1))
    return result


def train(cell: Cell, folder: Path) -> Path:
    """The cell's training run; returns its folder."""
    from accelerate.state import AcceleratorState, GradientState

    from ..train_dreambooth import main

    out = folder / "run"
    if (out / "adapter.safetensors").is_file() and (out / "run.json").is_file():
        return out
    AcceleratorState._reset_state(reset_partial_state=True)  # of the cell before, in this process
    GradientState._reset_state()
    code = main(training_arguments(cell, folder, out))
    if code:
        raise UserError(f"training was stopped (exit code {code})")
    return out


def training_arguments(cell: Cell, folder: Path, out: Path) -> list[str]:
    """The command line of the cell's run; users can give the same to train_dreambooth."""
    flags = dict(cell.flags or {})
    pictures = Path(cell.subject.folder)
    if (count := flags.pop("pictures", None)) is not None:
        pictures = first_pictures(pictures, count, folder / "pictures_trained_on")
    from ..prompts import article

    name = f"{cell.subject.identifier} {cell.subject.class_word}"
    flags |= {
        "pretrained_model_name_or_path": cell.judging.base,
        "instance_data_dir": pictures,
        "output_dir": out,
        "seed": cell.seed,
    }
    flags.setdefault("instance_prompt", f"{article(name)} {name}")
    flags.setdefault("report_to", "none")
    if cell.checkpoints:
        flags["max_train_steps"] = max(cell.checkpoints)
        flags["checkpointing_steps"] = math.gcd(*cell.checkpoints)
    else:
        flags.setdefault("checkpointing_steps", 100)
        flags.setdefault("checkpoints_total_limit", 1)
    if cell.device == "cpu":
        flags["cpu"] = True
    arguments = ["--resume_from_checkpoint", "latest"]
    for flag, value in flags.items():
        if value is True:
            arguments.append(f"--{flag}")
        elif value not in (None, False):
            arguments += [f"--{flag}", str(value)]
    return arguments


def first_pictures(source: Path, count: int, target: Path) -> Path:
    """A folder with the first `count` pictures, by name, and their captions."""
    from ..data import find_pictures

    found, _ = find_pictures(source)
    target.mkdir(parents=True, exist_ok=True)
    for picture in found[:count]:
        for path in (picture, picture.with_suffix(".txt")):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    if (source / "metadata.jsonl").is_file():
        shutil.copyfile(source / "metadata.jsonl", target / "metadata.jsonl")
    return target


def _cost(run: Path | None) -> dict[str, Any]:
    if run is None:
        return {}
    summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
    names = "trained_parameters adapter_bytes last_loss seconds_training peak_memory device"
    return {name: summary.get(name) for name in names.split()}
