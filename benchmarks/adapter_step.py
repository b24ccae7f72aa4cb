"""What an adapter costs in a training step: KronA at every factor pair beside LoRA and LoKr.

    python benchmarks/adapter_step.py                            # SD 1.5, CPU: half an hour
    python benchmarks/adapter_step.py --arch sdxl --device cuda --dtype bf16 --checkpointing

Each variant is the same frozen UNet (one copy of its weights serves all; published architecture,
random weights) with another adapter on Q, K, V and O. A round runs one step of every variant, each
round beginning with another one; a step's time is divided by the bare UNet's in the same round, so
that what else the machine does counts for all alike. A step is forward and backward: the bare UNet
computes gradients down to its input, as far as the lowest adapter needs them.

- step: median over rounds of the time over the bare UNet's, with its quartiles; on a CPU it is
  processor time that counts
- factors are fp32 in every precision, as in training; PEFT's own methods run under autocast then
- over LoRA: the same over LoRA's of the same round, with a 95 % bootstrap interval over rounds
- saved: what forward keeps for backward, over the bare UNet, counted tensor by tensor
- kernels: operations that a GPU would launch for an adapted layer, forward and backward, over the
  bare UNet's; moved: all that they read and write. Both are counted, the same on every machine
- peak: memory of a process that runs this variant alone (allocated on a GPU, resident on a CPU)

Peers: PEFT comes with the package; LyCORIS is measured if it is installed (pip install
lycoris-lora).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from counted import Kernels, saved_bytes  # noqa: E402
from random_models import random_unet  # noqa: E402
from record import show, write_record  # noqa: E402

from diffusekrona import KronAConfig  # noqa: E402
from diffusekrona.bases.published import SD15_UNET, SDXL_UNET  # noqa: E402
from diffusekrona.common.cpu_memory import keep_freed_memory  # noqa: E402
from diffusekrona.krona import target_layers  # noqa: E402

ARCHITECTURES = {"sd15": SD15_UNET, "sdxl": SDXL_UNET}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PAIRS = ((2, 64), (4, 64), (8, 64), (16, 64), (64, 64), (16, 16), (8, 8), (4, 4))
PAIRS += tuple((a2, a1) for a1, a2 in PAIRS[:4])
LORA = "PEFT LoRA r=4"
HALF_LORA = "PEFT LoRA r=4, half-precision factors"
RESAMPLINGS = 2000
FACTOR = 16  # of LoKr: (16, 16) blocks, so as many parameters as KronA (4, 64)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arch", choices=ARCHITECTURES, default="sd15")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=DTYPES, default="fp32", help="of base and activations")
    add("--latents", type=int, help="side of the latents; default: 32 on a CPU, else the base's")
    add("--batch_size", type=int, default=1)
    add("--checkpointing", action="store_true", help="gradient checkpointing")
    add("--compile", action="store_true", help="torch.compile every transformer block")
    add("--rounds", type=int, default=15)
    add("--limit", type=float, help="seconds after which no further round begins (three are run)")
    add("--threads", type=int, default=1)
    add("--only", nargs="+", metavar="NAME", help="of these variants (and the bare UNet) alone")
    add("--no_peak", action="store_true", help="leave the processes for peak memory out")
    add(
        "--few",
        action="store_true",
        help="few variants, and their times alone: LoRA, LoKr, two of KronA",
    )
    add("--quick", action="store_true", help="three rounds of few variants, no peaks")
    add("--output", type=Path, help="JSON file of the results; a plot is drawn beside it")
    add("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: quartiles want two at least")
    return args


# --- variants -------------------------------------------------------------------------------------


def bare(unet: Any) -> int:
    return 0


def with_peft(
    config: Any, autocast: bool = False, half_factors: bool = False
) -> Callable[[Any], int]:
    """Trained factors are fp32 over a half-precision base too, as every training program has them.

    Args:
        autocast: run the model under autocast where the base is in half precision; PEFT's own
            methods need that for fp32 factors, KronA casts by itself.
        half_factors: in the base's precision after all; no training program's way.
    """

    def add(unet: Any) -> int:
        unet.add_adapter(config())
        for parameter in unet.parameters():
            if parameter.requires_grad and not half_factors:
                parameter.data = parameter.data.float()
        unet.autocast = autocast and unet.dtype != torch.float32
        return sum(p.numel() for p in unet.parameters() if p.requires_grad)

    return add


def with_lycoris(bypass: bool) -> Callable[[Any], int]:
    def add(unet: Any) -> int:
        from lycoris import LycorisNetwork, create_lycoris

        LycorisNetwork.apply_preset({"target_module": ["Attention"]})
        network = create_lycoris(
            unet, 1.0, linear_dim=10**6, linear_alpha=1.0, algo="lokr", factor=FACTOR,
            bypass_mode=bypass, full_matrix=True,
        )  # fmt: skip
        network.apply_to()
        network.to(unet.device)
        unet.lycoris = network  # so that it lives, and is found among the parameters, as long
        return sum(p.numel() for p in network.parameters())

    return add


def variants() -> dict[str, Callable[[Any], int]]:
    """Name to a function that puts the adapter on a UNet and counts its parameters."""
    from peft import LoKrConfig, LoraConfig

    def lora_config() -> Any:
        return LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS)

    made: dict[str, Callable[[Any], int]] = {"bare UNet": bare}
    made[LORA] = with_peft(lora_config, autocast=True)
    made[HALF_LORA] = with_peft(lora_config, half_factors=True)
    for a1, a2 in PAIRS:
        made[f"KronA ({a1}, {a2})"] = with_peft(
            lambda a1=a1, a2=a2: KronAConfig(a1=a1, a2=a2, target_modules=TARGETS)
        )
    made["PEFT LoKr"] = with_peft(
        lambda: LoKrConfig(r=10**6, alpha=10**6, decompose_factor=FACTOR, target_modules=TARGETS),
        autocast=True,
    )
    if find_spec("lycoris"):
        made["LyCORIS LoKr"] = with_lycoris(bypass=False)
        made["LyCORIS LoKr, bypass"] = with_lycoris(bypass=True)
    return made


FEW = (LORA, "KronA (4, 64)", "KronA (64, 8)", "PEFT LoKr")


def chosen(args: argparse.Namespace) -> dict[str, Callable[[Any], int]]:
    every = variants()
    if args.dtype == "fp32":
        del every[HALF_LORA]  # the same as LoRA
    wanted = args.only or (FEW if args.quick or args.few else every)
    if unknown := set(wanted) - set(every):
        sys.exit(f"no variant {sorted(unknown)}; there are: {', '.join(every)}")
    return {name: add for name, add in every.items() if name in wanted or name == "bare UNet"}


# --- measuring ------------------------------------------------------------------------------------


def ratio_with_interval(times: list[float], others: list[float]) -> list[float]:
    """Median of the paired ratios, and the 95 % interval of that median over resampled rounds."""
    ratios = [t / o for t, o in zip(times, others, strict=True)]
    draw = random.Random(0)
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLINGS)
    )
    ends = medians[round(0.025 * RESAMPLINGS)], medians[round(0.975 * RESAMPLINGS) - 1]
    return [statistics.median(ratios), *ends]


def make_base(args: argparse.Namespace) -> Any:
    return random_unet(ARCHITECTURES[args.arch], DTYPES[args.dtype], args.device)


def adapted(args: argparse.Namespace, base: Any, add: Callable[[Any], int]) -> tuple[Any, int]:
    """A copy of the UNet that shares the base's weights, with an adapter."""
    unet = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    count = add(unet)
    if args.checkpointing:
        unet.enable_gradient_checkpointing()
    if args.compile:
        # One forward serves the blocks of all sizes and variants; past 8 it would not be compiled.
        torch._dynamo.config.recompile_limit = 256
        for module in unet.modules():
            if type(module).__name__ == "BasicTransformerBlock":
                module.compile()
    return unet.train(), count


def make_step(args: argparse.Namespace, unet: Any) -> Callable[[], torch.Tensor]:
    """One forward and backward; returns the loss."""
    config, dtype, device = unet.config, DTYPES[args.dtype], args.device
    torch.manual_seed(0)
    side = args.latents or (32 if device == "cpu" else config.sample_size)
    batch = args.batch_size
    latents = torch.randn(batch, 4, side, side, device=device, dtype=dtype)
    text = torch.randn(batch, 77, config.cross_attention_dim, device=device, dtype=dtype)
    extra = {}
    if config.addition_embed_type:
        pooled = torch.randn(batch, 1280, device=device, dtype=dtype)
        time_ids = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]] * batch)
        extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids.to(device)}
    timesteps = torch.full((batch,), 500, device=device)

    def step() -> torch.Tensor:
        # Adapters need gradients from the lowest attention on; the input's stands for them all.
        noisy = latents.clone().requires_grad_()
        with torch.autocast(device, dtype, enabled=getattr(unet, "autocast", False)):
            output = unet(noisy, timesteps, text, **extra).sample
        loss = output.float().square().mean()
        loss.backward()
        for parameter in unet.parameters():
            parameter.grad = None
        return loss.detach()

    return step


def seconds(step: Callable[[], Any], device: str) -> float:
    """Of one step: by the clock on a GPU, of processor time on a CPU that does other work too."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    steps: dict[str, Callable[[], Any]], rounds: int, device: str, until: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds of every step in every round, each round beginning with another one.

    Args:
        until: on time.monotonic's clock; no round but the first three begins later.
    """
    names, times = list(steps), {name: [] for name in steps}
    for number in range(rounds):
        if number >= 3 and time.monotonic() > until:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(steps[name], device))
        print(f"round {number + 1}/{rounds}", file=sys.stderr)
    return times


def peak_alone(args: argparse.Namespace, name: str) -> float | None:
    """Peak MiB of a fresh process that runs two steps of one variant; None if it fails."""
    command = [sys.executable, __file__, "--peak_of", name]
    for flag in ("arch", "device", "dtype", "batch_size", "threads", "latents"):
        if (value := getattr(args, flag)) is not None:
            command += [f"--{flag}", str(value)]
    command += ["--checkpointing"] * args.checkpointing + ["--compile"] * args.compile
    reported = subprocess.run(command, capture_output=True, text=True)
    if reported.returncode:
        print(reported.stderr[-500:], file=sys.stderr)
        return None
    return json.loads(reported.stdout.splitlines()[-1])


def peak_resident_mib() -> float:
    """Of this process alone: getrusage's is the parent's until it is exceeded."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def tell_peak(args: argparse.Namespace) -> None:
    unet, _ = adapted(args, make_base(args), variants()[args.peak_of])
    step = make_step(args, unet)
    for _ in range(2):
        step()
    if args.device == "cpu":
        print(peak_resident_mib())
    else:
        print(torch.cuda.max_memory_allocated() / 2**20)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per variant."""
    until = time.monotonic() + (args.limit or float("inf"))
    base = make_base(args)
    steps, rows = {}, []
    for name, add in chosen(args).items():
        unet, count = adapted(args, base, add)
        step = make_step(args, unet)
        saved = saved_bytes(step, unet) / 2**20  # the warm-up as well
        steps[name] = step
        rows.append({"variant": name, "parameters": count, "saved": saved})
        # A compiled block is one kernel or many, and cannot be counted.
        if not (args.compile or args.few):
            with Kernels() as kernels:
                step()
            rows[-1] |= {"kernels": kernels.count, "moved_mib": kernels.bytes / 2**20}
        print(f"{name}: ready", file=sys.stderr)
    times = in_turns(steps, args.rounds, args.device, until)
    floor = times["bare UNet"]
    for row in rows:
        ratios = [t / f for t, f in zip(times[row["variant"]], floor, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row |= {"ratio": middle, "low": low, "high": high, "fastest": min(times[row["variant"]])}
        row["rounds"] = len(ratios)
        row["saved_over_bare"] = row.pop("saved")
        row["peak_mib"] = None
    if LORA in times:
        for row in rows[1:]:
            row["over_lora"] = ratio_with_interval(times[row["variant"]], times[LORA])
    bare, layers = dict(rows[0]), len(target_layers(KronAConfig(target_modules=TARGETS), base))
    for row in rows:
        row["saved_over_bare"] -= bare["saved_over_bare"]
        if "kernels" in row:
            row["kernels_a_layer"] = (row.pop("kernels") - bare["kernels"]) / layers
            row["moved_over_bare"] = row.pop("moved_mib") - bare["moved_mib"]
        if not (args.no_peak or args.quick):
            row["peak_mib"] = peak_alone(args, row["variant"])
            print(f"{row['variant']}: peak", file=sys.stderr)
    return rows


# --- telling --------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "adapter": row["variant"],
            "trainable": row["parameters"],
            "step": f"{row['ratio']:.3f}",
            "quartiles": f"{row['low']:.3f} – {row['high']:.3f}",
            "over LoRA": interval_in_words(row["over_lora"]) if "over_lora" in row else None,
            "fastest, s": f"{row['fastest']:.3f}",
            "saved, MiB": f"{row['saved_over_bare']:+.1f}",
            "kernels": f"{row['kernels_a_layer']:+.1f}" if "kernels_a_layer" in row else None,
            "moved, MiB": f"{row['moved_over_bare']:+.0f}" if "moved_over_bare" in row else None,
            "peak, MiB": None if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        }
        for row in rows
    ]


def interval_in_words(numbers: list[float]) -> str:
    middle, low, high = numbers
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Step times as ratios, with quartiles; LoRA's as a line to compare with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted(rows[1:], key=lambda row: -row["ratio"])
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        colour = "#2a6f97" if row["variant"].startswith("KronA") else "#bc6c25"
        axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=2)
        axes.plot(row["ratio"], place, "o", color=colour)
    for row in rows:
        if row["variant"] == LORA:
            axes.axvline(row["ratio"], color="#bc6c25", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_xlabel("time of a training step over that of the bare UNet (median, quartiles)")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory(args.device)  # as training does
    if args.quick:
        args.rounds = min(args.rounds, 3)
    if args.peak_of:
        tell_peak(args)
        return
    rows = measure(args)
    settings = {k: v for k, v in vars(args).items() if k not in ("output", "peak_of")}
    side = args.latents or (32 if args.device == "cpu" else ARCHITECTURES[args.arch]["sample_size"])
    title = f"{args.arch}, {side} x {side} latents, batch {args.batch_size}, {args.dtype}"
    title += ", checkpointing" * args.checkpointing + ", compiled" * args.compile
    show(title, table(rows))
    if args.output:
        write_record(args.output, "adapter_step", {"title": title, "rows": rows}, settings)
        if find_spec("matplotlib"):  # gpu.sh does without
            plot(rows, title, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
