"""The memory estimate of `--dry_run` against the measured peak, one process per configuration.

    python benchmarks/memory.py                          # all of them; about 9 GiB of memory
    python benchmarks/memory.py --only pocket            # those whose name holds "pocket"

Each process builds the base at its full size (SD 1.5 and SDXL from their configs, with constant
weights), puts the adapter on it, and runs two optimizer steps. On a GPU the peak is torch's own
count of allocated bytes; on a CPU it is the highest sum of the allocations and releases that
torch's profiler reports. The growth of the process's resident memory stands beside it: it holds
what kernels take outside of torch as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from random_models import random_unet, write_configs  # noqa: E402
from record import write_record  # noqa: E402

from diffusekrona.bases.published import BASES  # noqa: E402
from diffusekrona.common.cpu_memory import peak_resident  # noqa: E402

BF16, CHECKPOINTING = ["--mixed_precision", "bf16"], ["--gradient_checkpointing"]
DRAW = ["--validation_prompt", "a dog"]
NF4, HOST = ["--quantize_base", "nf4"], ["--cpu_offload_checkpointing"]
STEPS = "training steps begin"
# name: (base, flags, whether a CPU runs it in reasonable time and memory)
CONFIGURATIONS: dict[str, tuple[str, list[str], bool]] = {
    "pocket": ("pocket", [], True),
    "pocket, batch 4": ("pocket", ["--train_batch_size", "4"], True),
    "pocket, batch 4, checkpointing": (
        "pocket",
        ["--train_batch_size", "4", *CHECKPOINTING],
        True,
    ),
    "pocket-sdxl, batch 4": ("pocket-sdxl", ["--train_batch_size", "4"], True),
    "sd15, 256 px, fp32": ("sd15", ["--resolution", "256"], True),
    "sd15, 256 px, fp32, checkpointing": ("sd15", ["--resolution", "256", *CHECKPOINTING], True),
    "sd15, 256 px, bf16": ("sd15", ["--resolution", "256", *BF16], True),
    "sd15, 256 px, bf16, nf4, checkpointing": (
        "sd15",
        ["--resolution", "256", *BF16, *NF4, *CHECKPOINTING],
        True,
    ),
    "sd15, 512 px, bf16": ("sd15", BF16, True),
    "sd15, 512 px, bf16, checkpointing": ("sd15", [*BF16, *CHECKPOINTING], True),
    "sd15, 512 px, fp32": ("sd15", [], True),
    "sdxl, 1024 px, bf16": ("sdxl", BF16, False),
    "sdxl, 1024 px, bf16, checkpointing": ("sdxl", [*BF16, *CHECKPOINTING], False),
    "sdxl, 1024 px, bf16, checkpoints on the host": ("sdxl", [*BF16, *HOST], False),
    "sdxl, 1024 px, bf16, nf4, checkpointing": ("sdxl", [*BF16, *NF4, *CHECKPOINTING], False),
    "sdxl, 1024 px, bf16, checkpointing, tiled pictures": (
        "sdxl",
        [*BF16, *CHECKPOINTING, *DRAW, "--vae_tiling"],
        False,
    ),
    "sdxl, 1024 px, low_vram": ("sdxl", ["--low_vram", *NF4, *DRAW], False),
    "sd15, 512 px, low_vram": ("sd15", ["--low_vram", *NF4, *DRAW], False),
}


def arguments(base: str, flags: list[str]) -> Any:
    """The training program's settings for a configuration."""
    from diffusekrona.training.settings import parse_settings

    required = ["--instance_data_dir", ".", "--output_dir", "unused", "--instance_prompt", "sks"]
    return parse_settings(["--pretrained_model_name_or_path", base, *required, *flags])


def measure(settings: Any, resolved: Any) -> dict[str, Any]:
    """Peak bytes of two training steps, weights included; the resident set's growth beside it."""
    import torch
    from torch.profiler import record_function

    from diffusekrona.adapters.layers import add_adapters
    from diffusekrona.bases.precision import dtype_of
    from diffusekrona.bases.quantisation import quantise
    from diffusekrona.training import setup as train_setup
    from diffusekrona.training.losses import dreambooth_loss
    from diffusekrona.training.optimizer import make_optimizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_of(settings.precision.mixed_precision or "no")
    family, config = resolved.family, resolved.denoiser_config
    quantised = settings.precision.quantize_base != "none"

    def run() -> None:
        unet = random_unet(dict(config), dtype, "cpu" if quantised else str(device))
        unet = quantise(unet, settings.precision.quantize_base).to(device)
        models = {family.denoiser: unet}
        trained = add_adapters(resolved.configs, models, "default")
        train_setup.save_memory(settings.precision, models)
        optimizer = make_optimizer(settings.optimisation, models, 1)
        batch = settings.optimisation.train_batch_size
        side = resolved.resolution // family.latent_scale(resolved.vae_config)
        size = (batch, unet.config.in_channels, side, side)

        def draw(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.rand(*shape, device=device).to(dtype)

        for _ in range(2):
            with record_function(STEPS):
                pass
            text = {n: draw(batch, *shape) for n, shape in family.text_shapes(config).items()}
            noisy, target = (draw(*size, dtype=torch.float32) for _ in range(2))
            timesteps = torch.full((batch,), 500, device=device)
            prediction = family.predict(
                unet.train(), noisy.to(dtype), timesteps, text, draw(batch, 6)
            )
            dreambooth_loss(prediction, target).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    resident = peak_resident()
    started = time.time()
    if device.type == "cuda":
        run()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = profiled_peak(run)
    grown = peak_resident() - resident
    return {"measured": peak, "resident": grown, "seconds": round(time.time() - started, 1)}


def profiled_peak(run: Any) -> int:
    """The most bytes that were allocated on the CPU at once after `STEPS` began, by torch's count.

    What loading takes is left out: before it goes to a GPU, a base that is to be quantised lies in
    the host's memory whole.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    start = min(event["ts"] for event in events if event.get("name") == STEPS)
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    live = peak = 0
    for when, size in sorted(changes, key=lambda change: change[0]):
        live += size
        peak = max(peak, live) if when >= start else 0
    return peak


def one(name: str, run: bool) -> dict[str, Any]:
    """Estimate and, if asked, measure a configuration in this process."""
    from diffusekrona.training.memory.estimate import estimate
    from diffusekrona.training.resolved_run import resolve_run

    base, flags, _ = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        place = base if base not in BASES else str(write_configs(Path(folder), base))
        settings = arguments(place, flags)
        resolved = resolve_run(settings.base, settings.adapter, settings.data.resolution)
        started = time.time()
        groups = (settings.optimisation, settings.precision, settings.prior, settings.validation)
        phases = {phase.name: phase for phase in estimate(settings.base, *groups, resolved)}
        row: dict[str, Any] = {
            "name": name,
            "flags": flags,
            "estimated": phases["training"].peak,
            "parts": phases["training"].parts,
            "phases": {n: phase.peak for n, phase in phases.items()},
            "estimate_seconds": round(time.time() - started, 2),
        }
        return {**row, **(measure(settings, resolved) if run else {})}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, sizes in GiB."""
    lines = [
        "| configuration | estimated | measured | estimate / measured | resident growth |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        estimated = f"{row['estimated'] / 2**30:.3f}" if "estimated" in row else ""
        cells = [row["name"], estimated]
        if "measured" in row:
            cells += [
                f"{row['measured'] / 2**30:.3f}",
                f"{row['estimated'] / row['measured']:.3f}",
                f"{row['resident'] / 2**30:.2f}",
            ]
        else:
            cells += [row.get("error", "not measured"), "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every configuration in a process of its own; write the table and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Configurations whose name holds this.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    options = parser.parse_args()
    import torch

    if options.one:
        run = CONFIGURATIONS[options.one][2] or torch.cuda.is_available()
        print(json.dumps(one(options.one, run)))
        return
    rows = []
    for name in (name for name in CONFIGURATIONS if options.only in name):
        command = [sys.executable, __file__, "--one", name]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip() or "killed").splitlines()[-1]
            rows.append({"name": name, "error": last})
        else:
            rows.append(json.loads(result.stdout.splitlines()[-1]))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        if options.output:  # after every row: a run that is cut short has measured something
            write_record(options.output, "memory", rows)


if __name__ == "__main__":
    main()
