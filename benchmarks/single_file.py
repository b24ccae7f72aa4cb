"""Host memory of loading a base from one file: the published SDXL's sizes, all zeros, in fp16.

    python benchmarks/single_file.py FOLDER        writes a file of 6.9 GB there, and deletes it

Each part and the whole model are loaded in a process of their own. `own` is memory that only this
process has; `resident` counts the pages of the mapped file too, which the system can drop. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS = ("unet", "text encoders", "vae", "whole model")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["float16"], metavar="DTYPE")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--one", nargs=2, metavar=("PART", "DTYPE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def write_file(path: Path) -> Path:
    """A whole SDXL in the original layout, of zeros."""
    import torch

    from diffusekrona.bases.families import FAMILIES
    from diffusekrona.bases.meta import build_empty
    from diffusekrona.bases.published import BASES
    from diffusekrona.common.tensor_files import write_entries
    from diffusekrona.formats.full_model import FullModel
    from diffusekrona.formats.merged import original_entries
    from diffusekrona.formats.refs import Ref

    family, parts = FAMILIES["sdxl"], {}
    kinds = {"unet": family.denoiser_class, "vae": family.vae_class, **family.text_encoders}
    for name, kind in kinds.items():
        tensors = build_empty(kind, BASES["sdxl"][name]).state_dict()
        parts[name] = {k: Ref(path, k, torch.float16, tuple(t.shape)) for k, t in tensors.items()}
    model = FullModel(path.parent, parts, family.name, BASES["sdxl"]["unet"])
    zeros = partial(torch.zeros, dtype=torch.float16)
    write_entries([replace(e, make=partial(zeros, e.shape)) for e in original_entries(model)], path)
    return path


def status() -> dict[str, float]:
    """Of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("Vm", "Rss")))
    return {name: int(value.split()[0]) / 1024 for name, value in pairs}


def one(path: Path, part: str, dtype: str) -> dict[str, Any]:
    """Load a part in this process: MiB of its weights, and how far memory rose meanwhile."""
    import torch
    from diffusers import StableDiffusionXLPipeline  # noqa: F401  (imported before counting)
    from transformers import CLIPTextModelWithProjection  # noqa: F401

    from diffusekrona.bases.families import identify
    from diffusekrona.bases.resolve import resolve_base

    base = resolve_base(str(path))
    family, _ = identify(base)
    loads = {
        "unet": lambda **o: [family.load_denoiser(base, **o)],
        "text encoders": lambda **o: [*family.load_text_encoders(base, **o).values()],
        "vae": lambda **o: [family.load_vae(base, **o)],
    }
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, peak, done = status(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, status()["RssAnon"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.perf_counter()
    chosen = loads.values() if part == "whole model" else [loads[part]]
    models = [model for load in chosen for model in load(dtype=getattr(torch, dtype))]
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    own = max(peak, status()["RssAnon"]) - before["RssAnon"]
    return {
        "": f"{part}, {dtype}",
        "weights, MiB": round(sum(p.nbytes for m in models for p in m.parameters()) / 2**20),
        "own, MiB": round(own),
        "resident, MiB": round(status()["VmHWM"] - before["VmRSS"]),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    args = parse_args()
    path = args.folder / "sdxl.safetensors"
    if args.one:
        print(json.dumps(one(path, *args.one)))
        return
    from record import show, write_record

    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        write_file(path)
        rows = []
        for dtype in args.dtypes:
            for part in args.parts:
                command = [sys.executable, __file__, str(args.folder), "--one", part, dtype]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rows.append(json.loads(output.splitlines()[-1]))
    finally:
        path.unlink(missing_ok=True)
    show("SDXL from one file in fp16, the most while it is loaded", rows)
    if args.output:
        write_record(args.output, "single_file", {"rows": rows})


if __name__ == "__main__":
    main()
