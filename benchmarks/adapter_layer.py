"""What an adapter costs on one layer, at the sizes and token counts that layers really have.

    python benchmarks/adapter_layer.py                  # SDXL's layers at 1024 px, bf16, CPU
    python benchmarks/adapter_layer.py --device cuda

`adapter_step.py` measures whole steps, in which a layer's adapter is a small part and other work
on the machine much. Here forward and backward of one projection are run alone: the frozen layer,
PEFT's LoRA of rank 4 around it (under autocast in half precision, as in training), KronA at each
pair. All take turns in every round; times are divided by the frozen layer's of the same round.

- step: median over rounds of the time over the frozen layer's
- over LoRA: the same over LoRA's of the same round, with a 95 % bootstrap interval over rounds
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from adapter_step import DTYPES, LORA, PAIRS, in_turns, interval_in_words, ratio_with_interval
from peft import LoraConfig, inject_adapter_in_model
from record import show, write_record
from torch import nn

from diffusekrona import KronAConfig
from diffusekrona.common.cpu_memory import keep_freed_memory

# (in, out, tokens) of SDXL's projections at 1024 px; of text, 77 tokens.
LAYERS = ((640, 640, 4096), (1280, 1280, 1024), (2048, 1280, 77))
FROZEN = "frozen layer"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=DTYPES, default="bf16", help="of base and activations")
    add("--rounds", type=int, default=15)
    add("--threads", type=int, default=1)
    add("--quick", action="store_true", help="three rounds")
    add("--output", type=Path, help="JSON file of the results")
    args = parser.parse_args()
    args.rounds = 3 if args.quick else args.rounds
    return args


def make_step(args: argparse.Namespace, linear: nn.Linear, config: Any, tokens: int) -> Callable:
    """Forward and backward of a frozen layer with an adapter, or of the layer alone."""
    dtype = DTYPES[args.dtype]
    model = nn.Module()
    model.layer = nn.Linear(linear.in_features, linear.out_features, device="meta")
    model.layer.weight, model.layer.bias = linear.weight, linear.bias
    if config is not None:
        inject_adapter_in_model(config, model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    chance = torch.Generator().manual_seed(0)
    shapes = ((1, tokens, linear.in_features), (1, tokens, linear.out_features))
    x, dy = (torch.randn(s, generator=chance).to(args.device, dtype) for s in shapes)
    x.requires_grad_()
    autocast = isinstance(config, LoraConfig) and dtype is not torch.float32
    repeats = max(1, 4096 // tokens)  # so that every measurement takes milliseconds

    def step() -> None:
        for _ in range(repeats):
            with torch.autocast(args.device, dtype, enabled=autocast):
                y = model.layer(x)
            y.backward(dy)
            for parameter in (x, *model.parameters()):
                parameter.grad = None

    return step


def measure(args: argparse.Namespace, size: tuple[int, int, int]) -> list[dict[str, Any]]:
    """One row per variant, of one layer."""
    into, out, tokens = size
    linear = nn.Linear(into, out).requires_grad_(False).to(args.device, DTYPES[args.dtype])
    configs: dict[str, Any] = {FROZEN: None, LORA: LoraConfig(r=4, target_modules=["layer"])}
    for a1, a2 in PAIRS:
        configs[f"KronA ({a1}, {a2})"] = KronAConfig(a1=a1, a2=a2, target_modules=["layer"])
    steps = {name: make_step(args, linear, config, tokens) for name, config in configs.items()}
    in_turns(steps, 1, args.device)  # to warm up
    times = in_turns(steps, args.rounds, args.device)
    rows = []
    for name in list(times)[1:]:
        pairs = zip(times[name], times[FROZEN], strict=True)
        rows.append(
            {
                "layer": f"{into} to {out}, {tokens} tokens",
                "adapter": name,
                "step": round(median(t / f for t, f in pairs), 3),
                "over LoRA": interval_in_words(ratio_with_interval(times[name], times[LORA])),
            }
        )
    return rows


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory(args.device)  # as training does
    rows = []
    for size in LAYERS:
        rows += measure(args, size)
        print(f"{size}: measured", file=sys.stderr)
    title = f"one layer of SDXL at 1024 px, {args.dtype}, {args.device}"
    show(title, rows)
    if args.output:
        settings = {key: str(value) for key, value in vars(args).items() if key != "output"}
        write_record(args.output, "adapter_layer", {"title": title, "rows": rows}, settings)


if __name__ == "__main__":
    main()
