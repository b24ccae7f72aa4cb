"""Builds the embedded base models from nothing: fetch, render, train, export.

    python -m tools.pocket_icons.build [--work_dir DIR] [--stage NAME] [--processes N]

Without `--stage` all stages run in order. Every stage keeps its state in `--work_dir`; kill it at
any time and start it again with the same command, and it goes on. Stages train for minutes, not
steps (`--minutes unet=90`), counted over all runs; a stage whose time is spent is skipped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import MODELS

# Otherwise every worker process warns that tokenizers were used before a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

#: stage -> default minutes of training.
STAGES = {
    "data": 0,
    "vae": 23,
    "clip": 19,
    "unet": 62,
    "unet_sdxl": 9,
    "dino": 28,
    "export": 0,
}


def run_stage(stage: str, work_dir: Path, models_dir: Path, minutes: float, processes: int) -> None:
    """Runs one stage. Only the two UNets use several processes; the rest are small."""
    # Imported here: `--help` and a missing optional package should not wait for torch.
    from . import clip, data, dino, export, training, unet, unet_sdxl, vae

    if stage == "data":
        data.build_data(work_dir, max(2, processes))
    elif stage == "vae":
        vae.train_vae(work_dir, minutes)
    elif stage == "clip":
        clip.train_clip(work_dir, minutes)
    elif stage == "unet":
        training.launch(unet.train_unet, processes, work_dir, minutes)
    elif stage == "unet_sdxl":
        training.launch(unet_sdxl.train_unet_sdxl, processes, work_dir, minutes)
    elif stage == "dino":
        dino.train_dino(work_dir, minutes)
    elif stage == "export":
        model, tokenizer = clip.load_clip(work_dir)
        parts = {"clip": model, "tokenizer": tokenizer, "vae": unet.load_final_vae(work_dir)}
        parts["unet"] = unet.load_unet(work_dir)
        if (work_dir / "unet_sdxl.pt").exists():
            parts["unet_sdxl"] = unet_sdxl.load_unet_sdxl(work_dir)
        if (work_dir / "dino.pt").exists():
            parts["dino"] = dino.load_dino(work_dir)
        export.export_all(models_dir, parts)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `minutes` becomes a dict of all stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pocket_build"))
    parser.add_argument(
        "--models_dir",
        type=Path,
        default=MODELS,
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="may be given repeatedly")
    parser.add_argument("--processes", type=int, default=2, help="for the UNets; one thread each")
    parser.add_argument(
        "--minutes", nargs="*", default=[], metavar="STAGE=MIN", help="training time of a stage"
    )
    args = parser.parse_args(argv)
    minutes = dict(STAGES)
    for item in args.minutes:
        name, _, value = item.partition("=")
        if name not in STAGES or not value.replace(".", "", 1).isdigit():
            parser.error(f"--minutes takes STAGE=MINUTES with a stage of {', '.join(STAGES)}")
        minutes[name] = float(value)
    args.minutes = minutes
    return args


def main(argv: list[str] | None = None) -> None:
    """Parses and runs the stages in order."""
    args = parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for stage in args.stage or STAGES:
        print(f"== {stage}", flush=True)
        run_stage(stage, args.work_dir, args.models_dir, args.minutes[stage], args.processes)


if __name__ == "__main__":
    main()
