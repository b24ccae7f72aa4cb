"""What a training step on a CPU gains from memory that is kept (diffusekrona/allocator.py).

    python benchmarks/allocator.py

SD 1.5's UNet (random weights) with KronA (4, 64), fp32, one thread: processes that keep what is
freed and processes that do not take turns, and within a turn the one's median step is divided by
the other's. Pages are those that the system handed out in a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

KEPT, FREED = "memory kept", "memory given back"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="of each process; the first is left out"
    )
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--one", choices=(KEPT, FREED), help=argparse.SUPPRESS)
    return parser.parse_args()


def one(way: str, steps: int) -> dict[str, float]:
    """Steps in this process: median processor seconds and pages of one, and the peak."""
    import torch
    from adapter_step import adapted, make_step, peak_resident_mib, seconds, variants
    from random_models import random_unet

    from diffusekrona.bases.published import SD15_UNET
    from diffusekrona.common.cpu_memory import keep_freed_memory

    torch.set_num_threads(1)
    if way == KEPT and not keep_freed_memory("cpu"):
        sys.exit("This machine's C library cannot be told to keep memory.")
    settings = argparse.Namespace(
        device="cpu", dtype="fp32", latents=32, batch_size=1, checkpointing=False, compile=False
    )
    unet, _ = adapted(settings, random_unet(SD15_UNET, torch.float32), variants()["KronA (4, 64)"])
    step = make_step(settings, unet)
    times, pages = [], []
    for _ in range(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(seconds(step, "cpu"))
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        "seconds": median(times[1:]),
        "pages": median(pages[1:]),
        "peak_mib": peak_resident_mib(),
    }


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every process's result, in turns."""
    found: dict[str, list[dict[str, float]]] = {KEPT: [], FREED: []}
    for turn in range(args.turns):
        for way in (KEPT, FREED) if turn % 2 == 0 else (FREED, KEPT):
            command = [sys.executable, __file__, "--one", way, "--steps", str(args.steps)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[way].append(json.loads(told.splitlines()[-1]))
            print(f"turn {turn + 1}, {way}: {found[way][-1]}", file=sys.stderr)
    return found


def rows_of(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row a way, with the median over turns of its step over that of memory given back."""
    return [
        {
            "": way,
            "cpu s a step": round(median(turn["seconds"] for turn in turns), 3),
            "over given back": round(
                median(
                    t["seconds"] / o["seconds"] for t, o in zip(turns, found[FREED], strict=True)
                ),
                3,
            ),
            "pages a step": round(median(turn["pages"] for turn in turns)),
            "peak, MiB": round(median(turn["peak_mib"] for turn in turns)),
        }
        for way, turns in found.items()
    ]


def main() -> None:
    args = parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.steps)))
        return
    from record import show, write_record

    found = measure(args)
    rows = rows_of(found)
    show("SD 1.5's UNet, KronA (4, 64), 32 x 32 latents, fp32, one thread", rows)
    if args.output:
        settings = {k: str(v) for k, v in vars(args).items() if k not in ("output", "one")}
        write_record(args.output, "allocator", {"rows": rows, "turns": found}, settings)


if __name__ == "__main__":
    main()
