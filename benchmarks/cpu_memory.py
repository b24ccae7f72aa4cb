"""Gain of a training step on a CPU from keeping freed memory (diffusekrona/common/cpu_memory.py).

    python benchmarks/cpu_memory.py

SD 1.5's UNet (random weights) with KronA (4, 64), fp32, one thread. Processes that keep freed
memory alternate with processes that return it, and within a turn the median step of one is divided
by that of the other. Page faults are minor faults in a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

KEPT, FREED = "freed memory kept", "freed memory returned"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="of each process; the first is not counted"
    )
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--one", choices=(KEPT, FREED), help=argparse.SUPPRESS)
    return parser.parse_args()


def one(way: str, steps: int) -> dict[str, float]:
    """Steps in this process: median CPU seconds and page faults of one, and the peak."""
    import resource  # not on Windows, which has no glibc either

    import torch
    from adapter_step import adapted, make_step, peak_resident_mib, seconds, variants
    from random_models import random_unet

    from diffusekrona.bases.published import SD15_UNET
    from diffusekrona.common.cpu_memory import keep_freed_memory

    torch.set_num_threads(1)
    if way == KEPT and not keep_freed_memory("cpu"):
        sys.exit("The C library of this machine cannot be configured to keep freed memory.")
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
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[way].append(json.loads(output.splitlines()[-1]))
            print(f"turn {turn + 1}, {way}: {found[way][-1]}", file=sys.stderr)
    return found


def rows_of(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row per way: medians over turns, of which one is relative to freed memory returned."""
    return [
        {
            "": way,
            "CPU s per step": round(median(turn["seconds"] for turn in turns), 3),
            "relative": round(
                median(
                    t["seconds"] / o["seconds"] for t, o in zip(turns, found[FREED], strict=True)
                ),
                3,
            ),
            "page faults per step": round(median(turn["pages"] for turn in turns)),
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
        write_record(args.output, "cpu_memory", {"rows": rows, "turns": found}, settings)


if __name__ == "__main__":
    main()
