"""Run a declared study: `python -m diffusekrona.study --help`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bases.precision import MIXED
from ..common.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from .cell import Cell, Judging
    from .grid import Study, Subject


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.study",
        description="A grid of training runs, scored, in one page. Finished runs are kept.",
    )
    add = parser.add_argument
    add("study", nargs="?", metavar="NAME|FILE", help="A declared study, or a YAML file of one.")
    add("--list", action="store_true", help="Tell the declared studies.")
    add("--print", action="store_true", help="Print the study as YAML, to copy and change.")
    add = parser.add_argument_group("what is run").add_argument
    add("--base", default="pocket", metavar="NAME_OR_PATH", help="Base model (pocket).")
    add(
        "--subject",
        action="append",
        default=[],
        metavar="FOLDER[:WORD]",
        help="Pictures, and what they show; repeat. Default: data/dog, data/cat, data/teapot.",
    )
    add("--identifier", default="sks", help="The subjects' name in prompts (sks).")
    add("--seeds", type=int, nargs="+", metavar="N", help="Training seeds, a run for each.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FLAG=VALUE",
        help="A training flag of all runs.",
    )
    add("--axis", action="append", default=[], metavar="NAME=V,V", help="Other values on an axis.")
    add("--checkpoints", type=int, nargs="+", metavar="STEP", help="Score each run after so many.")
    add = parser.add_argument_group("how it is judged").add_argument
    add("--prompts", default="auto", metavar="LIST|FILE", help="object, live, pocket, or a file.")
    add("--image_seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="Of every prompt.")
    add("--num_inference_steps", type=int, default=25, help="Denoising steps (25).")
    add("--guidance_scale", type=float, default=7.0, help="Classifier-free guidance (7).")
    add("--image_precision", choices=MIXED, help="Default: fp16 on a GPU, no on a CPU.")
    add("--image_batch_size", type=int, default=4, help="Pictures at once (4).")
    add(
        "--low_vram",
        action="store_true",
        help="Draw with only the model at work on the GPU; for training, --set low_vram=true.",
    )
    add("--clip", default="auto", metavar="NAME_OR_PATH", help="As in diffusekrona.evaluate.")
    add("--clip_backend", choices=("transformers", "openai"), default="transformers", help="…")
    add("--dino", default="auto", metavar="NAME_OR_PATH", help="As in diffusekrona.evaluate.")
    add = parser.add_argument_group("where").add_argument
    add("--output_dir", type=Path, help="Default: outputs/studies/<name>.")
    add(
        "--cells_dir",
        type=Path,
        metavar="DIR",
        help="Where runs are kept (OUTPUT_DIR/cells); studies that share it share their runs.",
    )
    add("--engine", choices=("local", "ray"), default="local", help="Who runs the cells (local).")
    add("--workers", type=int, help="local: cells at once; default: one, or one per GPU.")
    add("--ray_address", help="ray: the cluster's address; default: this machine.")
    add("--gpus_per_cell", type=float, help="ray: default 1 where there is a GPU, else 0.")
    add("--cpus_per_cell", type=float, default=1, help="ray: cores that each cell asks for (1).")
    add("--device", choices=("cpu", "cuda"), help="Default: the GPU if there is one.")
    add("--report_only", action="store_true", help="Run nothing; tell what there is.")
    return parser


def choose_study(args: argparse.Namespace, bundled: bool) -> Study:
    """The study asked for, with its changes.

    Raises:
        UserError: no such study, or a change that it cannot take.
    """
    from dataclasses import replace

    from .declared import studies
    from .grid import check_names, with_axis, with_flags, yaml_value
    from .yaml_files import read_study

    declared = studies(bundled)
    if args.study in declared:
        study = declared[args.study]
    elif args.study and (Path(args.study).suffix in (".yaml", ".yml")):
        study = read_study(Path(args.study))
    else:
        raise UserError(
            f"No study {args.study!r}: give a YAML file, or one of {', '.join(declared)}."
        )
    changes = {}
    for text in args.set:
        name, value = _pair(text, "--set")
        changes[name.lstrip("-")] = yaml_value(value)
    study = with_flags(study, changes)
    for text in args.axis:
        name, values = _pair(text, "--axis")
        study = with_axis(study, name, [v.strip() for v in values.split(",")])
    if args.seeds:
        study = replace(study, seeds=tuple(args.seeds))
    if args.checkpoints:
        study = replace(study, checkpoints=tuple(sorted(args.checkpoints)))
    check_names(study)
    return study


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"{flag} {text!r}: write it as name=value.")
    return name, value


def choose_subjects(args: argparse.Namespace) -> list[Subject]:
    """Subjects from `FOLDER[:WORD]`; a folder like data/dog holds its pictures in input/."""
    from .grid import Subject

    data = Path(__file__).resolve().parents[2] / "data"
    subjects = []
    for text in args.subject or [str(data / name) for name in ("dog", "cat", "teapot")]:
        folder, colon, word = text.rpartition(":")
        path = Path(folder if colon else text).expanduser()
        path = path / "input" if (path / "input").is_dir() else path
        name = path.parent.name if path.name == "input" else path.name
        folder = str(path.absolute())  # a cluster's workers are elsewhere
        subjects.append(Subject(name, folder, word if colon else name, args.identifier))
    if len({s.name for s in subjects}) < len(subjects):
        raise UserError("Two subjects have the same folder name: rename one.")
    return subjects


def choose_judging(
    args: argparse.Namespace, study: Study, bundled: bool
) -> tuple[Judging, list[str]]:
    """How cells are drawn and scored, and notes on what is left out."""
    from ..evaluation.encoders import choose_names
    from .cell import Judging

    clip, dino, note = choose_names(args.clip, args.dino, bundled)
    prompts = args.prompts if args.prompts != "auto" else "pocket" if bundled else "object"
    judging = Judging(
        args.base, prompts, tuple(args.image_seeds), args.num_inference_steps, args.guidance_scale,
        clip, args.clip_backend, dino, args.image_precision, args.image_batch_size,
        study.flags.get("revision"), study.flags.get("variant"),
        study.flags.get("pretrained_vae_model_name_or_path"), args.low_vram,
    )  # fmt: skip
    return judging, [note] if note else []


def run(args: argparse.Namespace, cells: Sequence[Cell], root: Path) -> list[tuple[str, str]]:
    """Run what is not finished; returns (title, error) of the cells that failed."""
    import torch

    from .cell import finished
    from .display import Display
    from .engines import run_local
    from .ray_engine import run_ray

    left = list({cell.key(): cell for cell in cells if finished(cell, root) is None}.values())
    gpus = [] if args.device == "cpu" else _gpus(torch.cuda.device_count())
    with Display(cells, left, root) as display:
        if args.engine == "ray":
            each = args.gpus_per_cell
            each = (1 if gpus else 0) if each is None else each
            run_ray(left, root, args.ray_address, each, args.cpus_per_cell, display.told)
        elif left:
            workers = min(args.workers or max(1, len(gpus)), len(left))
            run_local(left, root, workers, gpus, display.told)
    return display.failed


def _gpus(count: int) -> list[str]:
    """The GPUs that this program may use, named as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(n) for n in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: choose, run, tell. Returns 1 if cells failed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from ..bases.loading import bundled_models, quiet_libraries, resolve_base

    bundled = args.base in bundled_models()
    if args.list or not args.study:
        from .declared import studies

        for name, study in studies(bundled).items():
            print(f"{name:16}{study.title}: {study.question}")
        return 0
    for flag in ("num_inference_steps", "image_batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1, not {getattr(args, flag)}.")
    if len(set(args.image_seeds)) < len(args.image_seeds) or min(args.image_seeds) < 0:
        raise UserError("--image_seeds must be different whole numbers from 0 on.")
    study = choose_study(args, bundled)
    if args.print:
        from .yaml_files import to_yaml

        print(to_yaml(study), end="")
        return 0
    quiet_libraries()
    from ..common.tables import show_table
    from .cell import cells_of
    from .cell_run import check_flags
    from .page import caption, write_results
    from .results import gather, table

    resolve_base(args.base)
    judging, notes = choose_judging(args, study, bundled)
    cells = cells_of(study, choose_subjects(args), judging, args.device)
    check_flags(cells)
    root = args.output_dir or Path("outputs/studies") / study.name
    kept = (args.cells_dir or root / "cells").absolute()
    failed = [] if args.report_only else run(args, cells, kept)
    results = gather(study, cells, kept)
    if not results.points:
        raise UserError(f"No run of {study.name} has finished: see {kept}/*/log.txt.")
    show_table(caption(results), *table(results))
    for note in notes:
        print(note)
    print(f"The page: {write_results(results, root, notes)}")
    for title, error in failed:
        print(f"FAILED {title}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    exit_on_user_error(main)
