"""One JSON of a run of gpu.sh: the machine, how each part ended, and what it measured.

python benchmarks/gather.py PARTS RESULTS DEVICE      (gpu.sh calls it)
"""

from __future__ import annotations

import json
import re
import sys
from datetime import date
from pathlib import Path

from record import machine_facts


def gather(parts: Path, results: Path, device: str) -> Path:
    """Write `results`/gpu_<GPU's name>.json of the files in `parts`; returns its path."""
    found = {}
    for line in (parts / "status").read_text(encoding="utf-8").splitlines():
        name, status, seconds = line.split()
        log = parts / f"{name}.log"
        words = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        found[name] = {"exit": status, "seconds": int(seconds), "last_words": words[-600:].strip()}
        written = parts / f"{name}.json"
        if written.exists():
            found[name]["record"] = json.loads(written.read_text(encoding="utf-8"))
    machine = machine_facts()
    title = (machine["gpu"] or "").partition(",")[0] if device == "cuda" else f"none_{device}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower() or "unknown"
    path = results / f"gpu_{name}.json"
    record = {
        "benchmark": "gpu.sh",
        "machine": machine,
        "date": date.today().isoformat(),
        "command": "bash benchmarks/gpu.sh",
        "parts": found,
    }
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(gather(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
