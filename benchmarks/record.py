"""What every benchmark leaves: a JSON file that names machine, date, versions and command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "torchvision")


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, GPU, and the versions of what was measured; imports nothing big."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def write_record(
    path: Path, name: str, result: Any, settings: dict[str, Any] | None = None
) -> None:
    """Write one benchmark's JSON: {"benchmark", "machine", "date", "command", …, "result"}."""
    words = [without_folder(word) for word in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    record = {
        "benchmark": name,
        "machine": machine_facts(),
        "date": date.today().isoformat(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "command": command,
        "settings": {k: without_folder(str(v)) for k, v in (settings or {}).items()},
        "result": result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def without_folder(word: str) -> str:
    """An absolute path's last part: the rest of it is of use on one machine only."""
    return f"PATH/{Path(word).name}" if word.startswith("/") else word


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table: a column a key, in the order of first appearance."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        cells = ["–" if row.get(key) is None else f"{row[key]:,}" if isinstance(row[key], int)
                 else str(row[key]) for key in head]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _gpu() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        reported = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return reported.stdout.strip() or None
