"""What a user would ask first: SDXL at 1024 px in the programs themselves, on the GPU at hand.

    python benchmarks/sdxl_program.py --output FILE.json      (gpu.sh calls it)
    python benchmarks/sdxl_program.py --quick --output …      the bundled pocket-sdxl, to try it

A base of SDXL's size is made with random weights, nothing is downloaded. KronA and LoRA are trained
for 20 steps each (bf16, batch 1): seconds per step, the peak of each phase, and 1,000 steps
extrapolated. Then pictures are drawn with the KronA adapter merged and live. The file is written
after every part, so that a limit on time loses only what was not begun.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import write_record

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "data" / "dog" / "input"


def run_program(module: str, *flags: object) -> float:
    """Run one of the package's programs; returns its seconds. RuntimeError with its last lines."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", f"diffusekrona.{module}", *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{module}: exit {result.returncode}: {result.stderr[-600:]}")
    return time.perf_counter() - begun


def make_base(folder: str) -> dict[str, Any]:
    """In a process of its own, which leaves the GPU's memory to those that are measured."""
    begun = time.perf_counter()
    maker = [sys.executable, str(ROOT / "benchmarks" / "random_models.py"), folder, "sdxl"]
    made = subprocess.run(maker, capture_output=True, text=True)
    if made.returncode:  # on the processor it takes a minute more
        print(made.stderr[-600:], file=sys.stderr)
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        made = subprocess.run(maker, capture_output=True, text=True, env=hidden)
    if made.returncode:
        raise RuntimeError(f"random_models: exit {made.returncode}: {made.stderr[-600:]}")
    return {"seconds": round(time.perf_counter() - begun, 1)}


def train(base: str, method: str, out: Path, steps: int, more: list[str]) -> dict[str, Any]:
    """Seconds per step, the peak of each phase and 1,000 steps extrapolated."""
    whole = run_program(
        "train_dreambooth", "--pretrained_model_name_or_path", base, "--instance_data_dir",
        PICTURES, "--instance_prompt", "a sks dog", "--output_dir", out, "--adapter_type", method,
        "--max_train_steps", steps, "--report_to", "none", "--no_latents_cache", *more,
    )  # fmt: skip
    lines = (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    # A step is logged when the next one has begun: the last two come together.
    each = [later - sooner for sooner, later in itertools.pairwise(seconds[1:-1])]
    step = statistics.median(each)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {
        "seconds_per_step": round(step, 4),
        "seconds_whole_program": round(whole, 1),
        "seconds_1000_steps_extrapolated": round(whole + (1000 - steps) * step),
        "peak_memory_by_phase": run["peak_memory_by_phase"],
        "trained_parameters": run["trained_parameters"],
        "device": run["device"],
    }


def draw(base: str, adapter: Path, out: Path, steps: int, more: list[str]) -> dict[str, Any]:
    """Seconds per picture: between the files of one run, whose first warms up."""
    whole = run_program(
        "inference", "--pretrained_model_name_or_path", base, "--adapter", adapter,
        "--prompt", "a sks dog", "--num_inference_steps", steps, "--batch_size", 1,
        "--seeds", 0, 1, 2, "--output_dir", out, *more,
    )  # fmt: skip
    written = sorted(path.stat().st_mtime for path in out.glob("[0-9]*.png"))
    each = [later - sooner for sooner, later in itertools.pairwise(written)]
    return {
        "seconds_per_picture": round(statistics.median(each), 3),
        "seconds_each": [round(seconds, 3) for seconds in each],
        "seconds_whole_program": round(whole, 1),
    }


def fast_folder() -> str | None:
    """A folder in memory, where a base of 7 GB fits well; else the usual one."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 20 * 2**30
    return str(memory) if roomy else None


def main() -> None:
    """Every part in turn; the record is written after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="pocket-sdxl, 4 steps, on the CPU.")
    parser.add_argument("--base", help="A folder of SDXL, instead of random weights.")
    parser.add_argument("--checkpointing", action="store_true", help="For cards below 16 GB.")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    steps, drawn = (4, 2) if args.quick else (20, 25)
    training = ["--cpu"] if args.quick else ["--mixed_precision", "bf16", "--resolution", "1024"]
    drawing = ["--device", "cpu"] if args.quick else []
    if args.checkpointing:
        training += ["--gradient_checkpointing"]
    result: dict[str, Any] = {}

    def measure(name: str, part: Any, *arguments: Any) -> None:
        try:
            result[name] = part(*arguments)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            result[name] = {"error": str(error)}
        write_record(args.output, "sdxl_program", result, {"steps": steps, "drawn": drawn})

    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        work, base = Path(folder), args.base or "pocket-sdxl"
        if not args.quick and not args.base:
            base = str(work / "base")
            measure("make_base", make_base, base)
        for method in ("krona", "lora"):
            measure(f"train_{method}", train, base, method, work / method, steps, training)
        adapter = work / "krona" / "adapter.safetensors"
        measure("draw_merged", draw, base, adapter, work / "merged", drawn, drawing)
        measure("draw_live", draw, base, adapter, work / "live", drawn, [*drawing, "--no_merge"])
    if any("error" in part for part in result.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
