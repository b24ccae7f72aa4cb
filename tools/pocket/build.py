"""Builds the bundled models from nothing: draw, train, export.

    python -m tools.pocket.build [--work_dir DIR] [--stage NAME ...] [--minutes N] [--device cuda]

Without `--stage` all stages run in order. Every stage keeps its state in `--work_dir`; kill it at
any time and start it again with the same command, and it continues. Stages train for minutes, not
steps, counted over all runs; a stage whose time is spent is skipped.

To train the committed base further on a machine that has no state, first
`--stage restore`: it puts the exported weights of text tower, VAE and UNets in the work folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

#: stage -> minutes of training on one core that is free (for `data`: pictures).
STAGES = {
    "data": 40_000,
    "vae": 30,
    "clip": 20,
    "unet": 300,
    "unet_sdxl": 40,
    "decoder": 20,
    "reader": 30,
    "dino": 20,
    "export": 0,
}
MODELS = Path(__file__).parents[2] / "diffusekrona" / "pocket" / "models"


def run_stage(stage: str, amount: float, args: argparse.Namespace) -> None:
    """Runs one stage; `amount` is minutes, or pictures for `data`."""
    # Imported here: `--help` should not wait for torch.
    import torch

    from . import clip, data, decoder, dino, export, reader_training, restore, unet, unet_sdxl, vae

    work, device = args.work_dir, torch.device(args.device)
    if stage == "data":
        data.draw_pictures(work, "test", data.TEST_COUNT, args.processes)
        data.draw_pictures(work, "train", int(amount), args.processes)
    elif stage == "restore":
        restore.restore(args.models_dir, work)
    elif stage == "export":
        export.export_all(args.models_dir, restore.trained_parts(work))
    else:
        trainers = {
            "vae": vae.train_vae,
            "clip": clip.train_clip,
            "unet": unet.train_unet,
            "unet_sdxl": unet_sdxl.train_unet_sdxl,
            "decoder": decoder.train_decoder,
            "reader": reader_training.train_reader,
            "dino": dino.train_dino,
        }
        trainers[stage](work, amount, device)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/pocket_build"))
    parser.add_argument("--models_dir", type=Path, default=MODELS)
    parser.add_argument("--stage", choices=[*STAGES, "restore"], action="append", help="repeatable")
    parser.add_argument("--minutes", type=float, help="training time of the stage, over all runs")
    parser.add_argument("--pictures", type=int, help="of the data stage")
    parser.add_argument("--processes", type=int, default=1, help="of the data stage")
    parser.add_argument("--threads", type=int, help="of training on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    if args.minutes is not None and len(args.stage or ()) != 1:
        parser.error("--minutes needs exactly one --stage.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Parses and runs the stages in order."""
    args = parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    for stage in args.stage or STAGES:
        print(f"== {stage}", flush=True)
        amount = STAGES.get(stage, 0)
        if stage == "data":
            amount = args.pictures or amount
        elif args.minutes is not None:
            amount = args.minutes
        run_stage(stage, amount, args)


if __name__ == "__main__":
    main()
