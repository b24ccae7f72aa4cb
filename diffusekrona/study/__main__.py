"""Run a study: `python -m diffusekrona.study --help`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError, exit_on_user_error, writing
from ..common.paths import as_path
from .settings import ChosenSettings, PlaceSettings, ScoredSettings, parse_settings

if TYPE_CHECKING:
    from .cell import Cell, Scoring
    from .grid import Study, Subject

STEPS = 25  # denoising steps of pictures that are scored, unless asked otherwise


def choose_study(chosen: ChosenSettings, bundled: bool) -> Study:
    """The study asked for, with its changes.

    Raises:
        UserError: no such study, or a change that it cannot take.
    """
    from dataclasses import replace

    from .builtin_studies import studies
    from .grid import check_names, check_steps, with_axis, with_flags, yaml_value
    from .yaml_files import read_study

    builtin = studies(bundled)
    if chosen.study in builtin:
        study = builtin[chosen.study]
    elif chosen.study and (Path(chosen.study).suffix in (".yaml", ".yml")):
        study = read_study(Path(chosen.study))
    else:
        raise UserError(
            f"No study {chosen.study!r}: give a YAML file, or one of {', '.join(builtin)}."
        )
    changes = {}
    for text in chosen.set:
        name, value = _pair(text, "--set")
        changes[name.lstrip("-")] = yaml_value(value)
    study = with_flags(study, changes)
    for text in chosen.axis:
        name, values = _pair(text, "--axis")
        study = with_axis(study, name, [v.strip() for v in values.split(",")])
    if chosen.seeds:
        study = replace(study, seeds=tuple(chosen.seeds))
    if chosen.checkpoints:
        study = replace(study, checkpoints=tuple(sorted(chosen.checkpoints)))
    check_names(study)
    check_steps(study, changes)
    return study


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"{flag} {text!r}: write it as name=value.")
    return name, value


def choose_subjects(chosen: ChosenSettings) -> list[Subject]:
    """Subjects from `FOLDER[:WORD]`; a folder like data/dog holds its pictures in input/, and those
    that scores are against in heldout/."""
    from .grid import Subject

    data = Path(__file__).resolve().parents[2] / "data"
    subjects = []
    samples = ("dog", "cat", "teapot", "backpack", "duck", "car")
    for text in chosen.subject or [str(data / name) for name in samples]:
        folder, colon, word = text.rpartition(":")
        path = as_path(folder if colon else text)
        path = path / "input" if (path / "input").is_dir() else path
        name = path.parent.name if path.name == "input" else path.name
        folder = str(path.absolute())  # a cluster's workers are elsewhere
        held_out = path.parent / "heldout" if path.name == "input" else None
        held = str(held_out.absolute()) if held_out and held_out.is_dir() else None
        subjects.append(Subject(name, folder, word if colon else name, chosen.identifier, held))
    if len({s.name for s in subjects}) < len(subjects):
        raise UserError("Two subjects have the same folder name: rename one.")
    return subjects


def choose_scoring(
    base: str, scored: ScoredSettings, study: Study, bundled: bool
) -> tuple[Scoring, list[str]]:
    """How cells are drawn and scored, and notes on what is left out."""
    from ..bases.resolve import drawing_defaults
    from ..evaluation.encoders import choose_names
    from ..evaluation.prompts import choose_list
    from ..evaluation.settings import EncoderSettings
    from ..sampling.settings import guidance_or, steps_or
    from .cell import READING, Scoring

    defaults = drawing_defaults(
        base, study.flags.get("revision"), study.flags.get("single_file_config")
    )
    asked = EncoderSettings(scored.clip, scored.clip_backend, scored.dino)
    names, note = choose_names(asked, bundled)
    scoring = Scoring(
        base,
        choose_list(scored.prompts, bundled),
        seeds=scored.image_seeds,
        steps=steps_or(scored.num_inference_steps, defaults, STEPS),
        guidance=guidance_or(scored.guidance_scale, defaults),
        clip=names.clip,
        clip_backend=names.clip_backend,
        dino=names.dino,
        reader=names.reader,
        precision=scored.image_precision,
        batch_size=scored.image_batch_size,
        revision=study.flags.get("revision"),
        variant=study.flags.get("variant"),
        vae=study.flags.get("pretrained_vae_model_name_or_path"),
        low_vram=scored.low_vram,
        resolution=scored.image_resolution,
        scheduler=scored.scheduler,
        reading=tuple((name, study.flags[name]) for name in READING if name in study.flags),
    )
    return scoring, [note] if note else []


def run(place: PlaceSettings, cells: Sequence[Cell], root: Path) -> list[tuple[str, str]]:
    """Run what is not finished; returns (title, error) of the cells that failed."""
    import torch

    from .cell import finished
    from .display import Display
    from .engines import run_local
    from .ray_engine import run_ray

    left = list({cell.key(): cell for cell in cells if finished(cell, root) is None}.values())
    gpus = [] if place.device == "cpu" else _gpus(torch.cuda.device_count())
    with Display(cells, left, root) as display:
        if place.engine == "ray":
            each = place.gpus_per_cell
            each = (1 if gpus else 0) if each is None else each
            run_ray(left, root, place.ray_address, each, place.cpus_per_cell, display.on_outcome)
        elif left:
            workers = min(place.workers or max(1, len(gpus)), len(left))
            run_local(left, root, workers, gpus, display.on_outcome)
    return display.failed


def _gpus(count: int) -> list[str]:
    """The GPUs that this program may use, named as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(n) for n in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: select the study, run it, report. Returns 1 if cells failed."""
    settings = parse_settings(argv)
    chosen, place = settings.chosen, settings.place
    from ..bases.bundled import is_bundled
    from ..bases.loading import quiet_libraries
    from ..bases.resolve import resolve_base

    if place.results:
        from .page import markdown
        from .results_file import read_results

        print(markdown(read_results(place.results)), end="")
        return 0
    bundled = is_bundled(chosen.base)
    if chosen.list_studies or not chosen.study:
        from .builtin_studies import studies

        for name, study in studies(bundled).items():
            print(f"{name:16}{study.title}: {study.question}")
        return 0
    study = choose_study(chosen, bundled)
    if chosen.print_study:
        from .yaml_files import to_yaml

        print(to_yaml(study), end="")
        return 0
    quiet_libraries()
    from ..common.tables import show_table
    from ..data.folder import find_pictures
    from ..data.photographs import report_photographs
    from .cell import cells_of
    from .cell_run import check_flags
    from .page import caption, write_results
    from .results import gather, table

    resolve_base(chosen.base, study.flags.get("single_file_config"))
    scoring, notes = choose_scoring(chosen.base, settings.scored, study, bundled)
    subjects = choose_subjects(chosen)
    for subject in subjects:
        report_photographs(chosen.base, find_pictures(Path(subject.folder))[0])
    cells = cells_of(study, subjects, scoring, place.device)
    check_flags(cells)
    root = place.output_dir or Path("outputs/studies") / study.name
    cells_dir = (place.cells_dir or root / "cells").absolute()
    if not place.report_only:  # a file in the place of a folder is named before anything runs
        for folder in (root, cells_dir):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
    failed = [] if place.report_only else run(place, cells, cells_dir)
    results = gather(study, cells, cells_dir)
    if not results.points:
        why = f"{failed[0][0]}: {failed[0][1]}" if failed else f"see {cells_dir}/*/log.txt"
        raise UserError(f"No run of {study.name} has finished. {why}")
    show_table(caption(results), *table(results))
    for note in notes:
        print(note)
    print(f"The page: {write_results(results, root, notes)}")
    for title, error in failed:
        print(f"FAILED {title}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    exit_on_user_error(main)
