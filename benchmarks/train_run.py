"""A whole run, from the command to the adapter file: ours against diffusers' own example.

    python benchmarks/train_run.py --diffusers_example PATH/train_dreambooth_lora.py
    python benchmarks/train_run.py --make_model FOLDER --resolution 256 --steps 8 …

The example is the user's copy of `examples/dreambooth/train_dreambooth_lora.py` of diffusers; it
needs torchvision. All programs get the same pictures, steps, batch, resolution, precision, threads
and layers (q, k, v, o of the UNet; LoRA of rank 4). They run one after another, in turns, and are
watched from outside in the same way:

    first step   the progress bar on standard error shows a finished step
    adapter      the adapter file is there
    exit         the program has ended
    cpu          processor seconds, which other work on the machine changes little: with one thread
                 about the seconds that an idle machine would take
    peak         most resident memory, of the operating system's own account (wait4);
                 on a GPU also the most memory in use on the device, less what was in use before

"imports alone" is what our program imports before it does anything: torch, diffusers, PEFT,
accelerate. The VAE works in the run's precision in all of them, as it does in the example; by
default ours takes fp32.

Ratios are to diffusers' run of the same turn; the median over the turns is shown.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from record import show, write_record

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
REFERENCE = "diffusers LoRA r=4"
IMPORTS = "imports alone"
ADAPTER = "adapter.safetensors"
MEASURES = (
    "first_step_s",
    "first_step_cpu_s",
    "adapter_s",
    "adapter_cpu_s",
    "exit_s",
    "step_s",
    "step_cpu_s",
    "peak_rss_mib",
    "peak_vram_mib",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", default="pocket", help="bundled model, or a diffusers folder")
    add("--make_model", type=Path, help="make an SD 1.5-size random base here, once, and use it")
    add("--diffusers_example", type=Path, help="path of train_dreambooth_lora.py; none: ours only")
    add("--diffusers_python", default=sys.executable, help="the Python that runs the example")
    add("--pictures", type=Path, default=ROOT / "data" / "dog" / "input", help="folder")
    add("--steps", type=int, default=30, help="more than there are pictures")
    add("--batch", type=int, default=1)
    add("--resolution", type=int, default=64)
    add("--precision", choices=("no", "fp16", "bf16"), default="no")
    add("--gradient_checkpointing", action="store_true")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="OMP_NUM_THREADS of every program")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add(
        "--only",
        default=[""],
        nargs="+",
        help="run only programs whose names hold this",
    )
    add("--quick", action="store_true", help="one turn of few steps: does it run at all?")
    add("--output", type=Path, help="JSON file of the results")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats = 8, 1
    return args


# --- the commands ----------------------------------------------------------------------------


def programs(args: argparse.Namespace, base: str, pictures: Path) -> dict[str, Callable]:
    """Name to a function of the output folder that gives (command, name of the adapter file)."""
    common = [
        "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog",
        "--center_crop",
        "--resolution", str(args.resolution),
        "--train_batch_size", str(args.batch),
        "--gradient_accumulation_steps", "1",
        "--max_train_steps", str(args.steps),
        "--checkpointing_steps", "1000000",
        "--learning_rate", "1e-4",
        "--lr_scheduler", "constant",
        "--mixed_precision", args.precision,
        "--rank", "4",
        "--seed", "0",
        *(["--gradient_checkpointing"] if args.gradient_checkpointing else []),
    ]  # fmt: skip

    cache = pictures.parent / "cache"

    def ours(kind: str, again: bool = False) -> Callable[[Path], tuple[list[str], str]]:
        def command(out: Path) -> tuple[list[str], str]:
            if not again:  # a first run finds no cache and leaves one to the second
                shutil.rmtree(cache, ignore_errors=True)
            start = [sys.executable, "-m", "diffusekrona.train_dreambooth"]
            more = ["--pretrained_model_name_or_path", base, "--output_dir", str(out)]
            more += ["--adapter_type", kind, *(["--cpu"] if args.device == "cpu" else [])]
            more += ["--report_to", "tensorboard" if find_spec("tensorboard") else "none"]
            more += ["--vae_dtype", args.precision.replace("no", "fp32")]
            return [*start, *common, *more, "--latents_cache_dir", str(cache)], ADAPTER

        return command

    def example(*extra: str) -> Callable[[Path], tuple[list[str], str]]:
        def command(out: Path) -> tuple[list[str], str]:
            start = [args.diffusers_python, str(args.diffusers_example)]
            folder = str(ROOT / "diffusekrona" / "pocket" / "models" / base)
            more = ["--pretrained_model_name_or_path", folder if Path(folder).is_dir() else base]
            more += ["--output_dir", str(out), *extra]
            return [*start, *common, *more], "pytorch_lora_weights.safetensors"

        return command

    found = {
        "LoRA r=4": ours("lora"),
        "KronA 4x64": ours("krona"),
        "KronA 4x64, second run": ours("krona", again=True),
    }
    if args.diffusers_example:
        found[REFERENCE] = example()
        found[f"{REFERENCE}, text precomputed"] = example("--pre_compute_text_embeddings")
    return {name: make for name, make in found.items() if any(part in name for part in args.only)}


# --- one run, watched ------------------------------------------------------------------------


def watch(command: list[str], adapter: Path, args: argparse.Namespace) -> dict[str, float]:
    """Run `command` and measure it from outside. Raises RuntimeError with its last words."""
    env = environment(args)
    bar = re.compile(rb"\b(\d+)/%d\b" % args.steps)
    seen: list[tuple[int, float, float]] = []  # steps done, seconds, processor seconds
    adapter_s = adapter_cpu_s = 0.0
    with gpu_memory(args.device) as vram, tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
        )
        text, open_ = b"", True
        while open_:
            if select.select([child.stderr], [], [], 0.02)[0]:
                piece = os.read(child.stderr.fileno(), 65536)
                open_ = bool(piece)
                log.write(piece)
                text = (text + piece)[-4096:]
                shown = [int(number) for number in bar.findall(text)]
                done = max(shown, default=0)
                if done > (seen[-1][0] if seen else 0):
                    seen.append((done, time.perf_counter() - started, cpu_seconds(child.pid)))
            if not adapter_s and adapter.exists():
                adapter_s, adapter_cpu_s = time.perf_counter() - started, cpu_seconds(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        exit_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if child.returncode or not seen or not adapter.exists():
            words = log.read()[-3000:].decode(errors="replace")
            raise RuntimeError(f"{command[:3]} …: exit {child.returncode}\n{words}")
    (first, first_s, first_cpu_s), (last, last_s, last_cpu_s) = seen[0], seen[-1]
    measured = {
        "first_step_s": first_s,
        "first_step_cpu_s": first_cpu_s,
        "adapter_s": adapter_s or exit_s,
        "adapter_cpu_s": adapter_cpu_s or usage.ru_utime + usage.ru_stime,
        "exit_s": exit_s,
        "step_s": (last_s - first_s) / max(1, last - first),
        "step_cpu_s": (last_cpu_s - first_cpu_s) / max(1, last - first),
        "peak_rss_mib": usage.ru_maxrss / 1024,
    }
    if args.device == "cuda":
        measured["peak_vram_mib"] = vram["peak"] - vram["before"]
    return {name: round(value, 3) for name, value in measured.items()}


def environment(args: argparse.Namespace) -> dict[str, str]:
    """That of every program."""
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    own = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, own)), "HF_HUB_OFFLINE": "1"}
    return env | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})


def watch_imports(args: argparse.Namespace) -> dict[str, float]:
    """The libraries imported in a process of its own; its end stands for the first step."""
    imports = "from diffusekrona.train_dreambooth import import_libraries; import_libraries()"
    command = [sys.executable, "-c", imports]
    started = time.perf_counter()
    child = subprocess.Popen(command, env=environment(args), stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command}: exit {child.returncode}")
    return {
        "first_step_s": round(time.perf_counter() - started, 3),
        "first_step_cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_rss_mib": round(usage.ru_maxrss / 1024, 3),
    }


def cpu_seconds(process: int) -> float:
    """Processor seconds that a running process has used, its threads' together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class gpu_memory:
    """Watches the first GPU's memory in use (MiB) while the block runs; nothing on a CPU."""

    def __init__(self, device: str) -> None:
        self.on, self.stop = device == "cuda", threading.Event()

    def read(self) -> float:
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        return float(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)

    def __enter__(self) -> dict[str, float]:
        self.seen = {"before": 0.0, "peak": 0.0}
        if self.on:
            self.seen = {"before": (now := self.read()), "peak": now}
            self.thread = threading.Thread(target=self.poll)
            self.thread.start()
        return self.seen

    def poll(self) -> None:
        while not self.stop.wait(0.1):
            self.seen["peak"] = max(self.seen["peak"], self.read())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self.on:
            self.thread.join()


# --- all of them -----------------------------------------------------------------------------


def measure(
    args: argparse.Namespace, base: str, scratch: Path, keep: Callable[[dict], None]
) -> dict[str, list[dict]]:
    """Every program `repeats` times, in turns of alternating order; `keep` gets what there is."""
    pictures = scratch / "pictures"
    pictures.mkdir()
    for path in sorted(args.pictures.iterdir()):  # the example stumbles over anything else
        if path.suffix.lower() in PICTURES:
            shutil.copy(path, pictures)
    runs = programs(args, base, pictures)
    results: dict[str, list[dict]] = {name: [] for name in (IMPORTS, *runs)}
    watch_imports(args)  # so that the files of all programs' libraries have been read once
    for turn in range(args.repeats):
        results[IMPORTS].append(watch_imports(args))
        names = list(runs)
        for name in names if turn % 2 == 0 else reversed(names):
            out = scratch / "out"
            shutil.rmtree(out, ignore_errors=True)
            command, adapter = runs[name](out)
            results[name].append(watch(command, out / adapter, args))
            print(f"turn {turn + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
            keep(results)
    return results


def summary(results: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Medians, and medians of the ratios to diffusers' run of the same turn."""
    rows = []
    for name, turns in results.items():
        row: dict[str, Any] = {"program": name}
        for measure_ in MEASURES:
            if measure_ not in turns[0]:
                continue
            row[measure_] = round(statistics.median(t[measure_] for t in turns), 3)
            if REFERENCE in results:
                pairs = zip(turns, results[REFERENCE], strict=True)
                ratio = statistics.median(t[measure_] / r[measure_] for t, r in pairs)
                row[f"{measure_}_ratio"] = round(ratio, 3)
        rows.append(row)
    return rows


def main() -> None:
    args = parse_args()
    base = args.base
    if args.make_model:
        base = str(args.make_model)
        if not (args.make_model / "model_index.json").is_file():
            # In a process of its own: this one stays small, and so its children's peaks are theirs.
            maker = [sys.executable, str(ROOT / "benchmarks" / "random_models.py"), base]
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
    size = "SD 1.5 size, random weights" if args.make_model else Path(base).name
    title = f"{size}: {args.steps} steps, {args.resolution} px, batch {args.batch}"
    precision = args.precision.replace("no", "fp32")
    title += f", {precision}, {args.device}, {args.threads} thread(s)"
    settings = {k: str(v) for k, v in vars(args).items() if k != "output"}

    def keep(results: dict[str, list[dict]], **more: Any) -> None:
        if args.output:
            record = {"title": title, **more, "turns": results}
            write_record(args.output, "train_run", record, settings)

    with tempfile.TemporaryDirectory() as scratch:
        results = measure(args, base, Path(scratch), keep)
    rows = summary(results)
    show(title, rows)
    keep(results, rows=rows)


if __name__ == "__main__":
    main()
