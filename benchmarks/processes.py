"""Pictures a second with one process and with more: data parallel through accelerate.

    python benchmarks/processes.py --processes 1 2 --base pocket --batch 4

Each process has one thread on a CPU, or a GPU of its own, and the same batch. The seconds of a step
are the median over the run's own train_log.jsonl, its first steps left out; the runs take turns.
With N processes a step sees N times the pictures (tests/test_train.py: gradients are those of one
process with N times the batch).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import show, write_record

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3  # steps not counted


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2])
    add("--base", default="pocket")
    add("--pictures", type=Path, default=ROOT / "data" / "dog" / "input")
    add("--batch", type=int, default=4, help="of each process")
    add("--resolution", type=int, default=64)
    add("--steps", type=int, default=30)
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="of each process")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--quick", action="store_true", help="one turn of few steps")
    add("--output", type=Path, help="JSON file of the results")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats = 8, 1
    return args


def step_seconds(args: argparse.Namespace, processes: int, out: Path) -> float:
    """Median seconds of a step with that many processes. Raises CalledProcessError."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else [])]
    command += ["-m", "diffusekrona.train_dreambooth", "--output_dir", str(out)]
    command += ["--pretrained_model_name_or_path", args.base, "--instance_prompt", "a sks dog"]
    command += ["--instance_data_dir", str(args.pictures), "--resolution", str(args.resolution)]
    command += ["--train_batch_size", str(args.batch), "--max_train_steps", str(args.steps)]
    command += ["--report_to", "none", *(["--cpu"] if args.device == "cpu" else [])]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env |= {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=env, stderr=subprocess.PIPE)
    lines = (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["seconds"] for line in lines][WARM_UP:]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    args = parse_args()
    found: dict[int, list[float]] = {n: [] for n in args.processes}
    for turn in range(args.repeats):
        for processes in args.processes[:: 1 if turn % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                seconds = step_seconds(args, processes, Path(folder) / "out")
            found[processes].append(seconds)
            print(f"turn {turn + 1}, {processes} process(es): {seconds:.3f} s per step")
    least = args.processes[0]
    rows = []
    for processes, seconds in found.items():
        pairs = zip(found[least], seconds, strict=True)
        gain = statistics.median(processes / least * one / many for one, many in pairs)
        middle = statistics.median(seconds)
        rows.append(
            {
                "processes": processes,
                "batch over all": processes * args.batch,
                "seconds a step": round(middle, 3),
                "pictures a second": round(processes * args.batch / middle, 2),
                f"throughput over {least}": round(gain, 2),
            }
        )
    title = f"{Path(args.base).name}, {args.resolution} px, batch {args.batch} a process"
    title += f", {args.device}, {args.threads} thread(s) a process"
    show(title, rows)
    if args.output:
        settings = {k: str(v) for k, v in vars(args).items() if k != "output"}
        result = {"title": title, "rows": rows, "turns": {str(n): t for n, t in found.items()}}
        write_record(args.output, "processes", result, settings)


if __name__ == "__main__":
    main()
