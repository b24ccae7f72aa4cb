"""Running a cell: an ordinary training run, its pictures, their scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..adapters.layout import ADAPTER_FILE
from ..adapters.norms import NORMS_KEY
from ..common.command_line import arguments_of
from ..common.errors import UserError
from ..common.files import replace_whole, write_text
from ..common.run_record import RUN_RECORD, read_run_record_or_none
from ..common.settings import build, check_limits
from ..common.settings_files import typed_values
from ..training.settings import TrainSettings
from .cell import RESULT, Cell, finished
from .grid import steps_for
from .scoring import score_point

# What reaches out of the study's folder, or has its own flag, and what to do instead.
_NOT_IN_STUDIES = {
    **dict.fromkeys((
        "output_dir", "logging_dir", "resume_from_checkpoint", "overwrite_output_dir",
        "push_to_hub", "hub_model_id", "hub_token", "dry_run", "lr_find",
    ), "leave it out"),
    "seed": "use --seeds",
    "instance_data_dir": "use --subject",
    "pretrained_model_name_or_path": "use --base",
}  # fmt: skip


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
    scored = cell.scored(root)
    run = train(cell, cell.folder(root)) if cell.flags is not None else None
    scored.mkdir(parents=True, exist_ok=True)
    points = []
    for step in cell.checkpoints or (None,):
        adapter = run and (run / f"checkpoint-{step}" if step else run)
        points.append(score_point(cell, scored, adapter, step))
    result = {
        "key": cell.key(),
        "scored_by": cell.scored_by(),
        "title": cell.title(),
        "points": points,
        "cost": _cost(run),
    }
    write_text(scored / RESULT, json.dumps(result, indent=1))
    return result


def train(cell: Cell, folder: Path) -> Path:
    """The cell's training run; returns its folder."""
    from accelerate.state import AcceleratorState, GradientState
    from diffusers.training_utils import free_memory

    from ..train_dreambooth import main

    out = folder / "run"
    if (out / ADAPTER_FILE).is_file() and (out / RUN_RECORD).is_file():
        return out
    AcceleratorState._reset_state(reset_partial_state=True)  # of the cell before, in this process
    GradientState._reset_state()
    code = main(training_arguments(cell, folder, out))
    free_memory()  # the trained denoiser, before another is loaded to draw
    if code:
        raise UserError(f"training was stopped (exit code {code})")
    return out


def training_arguments(cell: Cell, folder: Path, out: Path) -> list[str]:
    """The command line of the cell's run; users can give the same to train_dreambooth."""
    pictures = Path(cell.subject.folder)
    if (count := (cell.flags or {}).get("pictures")) is not None:
        pictures = first_pictures(pictures, count, folder / "pictures_trained_on")
    values = _training_values(cell, pictures, out)
    return ["--resume_from_checkpoint", "latest", *arguments_of(TrainSettings, values)]


def check_flags(cells: Iterable[Cell]) -> None:
    """Refuse training flags that do not exist or cannot have their values, before anything runs.

    Raises:
        UserError: naming the cell and the flag.
    """
    for cell in cells:
        if cell.flags is not None:
            for name, instead in _NOT_IN_STUDIES.items():
                if name in cell.flags:
                    raise UserError(f"{cell.title()}: a study cannot set {name}: {instead}.")
            values = _training_values(cell, Path(cell.subject.folder), Path("run"))
            try:
                check_limits(build(TrainSettings, values))
            except UserError as error:
                raise UserError(f"{cell.title()}: {error}") from error


def _training_values(cell: Cell, pictures: Path, out: Path) -> dict[str, Any]:
    """The run's settings by name, of their types. Raises UserError for a flag that is not one."""
    from ..evaluation.prompts import article

    flags = {k: v for k, v in (cell.flags or {}).items() if k != "pictures"}
    name = f"{cell.subject.identifier} {cell.subject.class_word}"
    flags |= {
        "pretrained_model_name_or_path": cell.scoring.base,
        "instance_data_dir": str(pictures),
        "output_dir": str(out),
        "seed": cell.seed,
    }
    flags.setdefault("instance_prompt", f"{article(name)} {name}")
    flags.setdefault("report_to", "none")
    if cell.checkpoints:
        flags |= steps_for(cell.checkpoints)
    else:
        flags.setdefault("checkpointing_steps", 100)
        flags.setdefault("checkpoints_total_limit", 1)
    if cell.device == "cpu":
        flags["cpu"] = True
    return typed_values(TrainSettings, flags, cell.title())


def first_pictures(source: Path, count: int, target: Path) -> Path:
    """A folder with the first `count` pictures, by name, and their captions and masks."""
    from ..data.folder import find_pictures
    from ..data.masks import MASK_ENDINGS

    found, _ = find_pictures(source)
    target.mkdir(parents=True, exist_ok=True)
    files = [source / "metadata.jsonl"]
    for picture in found[:count]:
        files += [picture, picture.with_suffix(".txt"), picture.with_suffix(".caption")]
        files += [picture.with_name(picture.stem + ending) for ending in MASK_ENDINGS]
    for path in filter(Path.is_file, files):
        with replace_whole(target / path.name) as temporary:
            shutil.copyfile(path, temporary)
    return target


def _cost(run: Path | None) -> dict[str, Any]:
    if run is None:
        return {}
    record = read_run_record_or_none(run)
    names = "trained_parameters adapter_bytes last_loss seconds_training peak_memory device"
    return {name: getattr(record, name, None) for name in (*names.split(), NORMS_KEY)}
