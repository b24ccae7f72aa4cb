"""What `--dry_run` prints: the resolved plan, its memory, its schedule, its files.

Answered from configs alone; no weights are loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..adapters.layers import AdaptedLayer
from .lr_schedule import rate_factor
from .memory.estimate import estimate, in_words
from .memory.sizes import BYTES
from .plan import Plan, max_train_steps


def print_plan(
    plan: Plan, args: argparse.Namespace, pictures: Sequence[Any], captions: Sequence[str]
) -> None:
    """Print the resolved plan: what is trained, for how long, and which files it will write."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(title="Adapted layers", box=box.SIMPLE, title_justify="left")
    for column in ("where", "layers", "out", "in", "factors or rank", "parameters"):
        numeric = column in ("layers", "out", "in", "parameters")
        table.add_column(column, justify="right" if numeric else "left")
    groups: dict[tuple, list[AdaptedLayer]] = {}
    for layer in plan.layers:
        block = f"{layer.component} {_block(layer.name)}"
        key = (block, layer.out_features, layer.in_features, layer.factors)
        groups.setdefault(key, []).append(layer)
    for (block, out, inside, factors), group in sorted(groups.items()):
        names = ", ".join(dict.fromkeys(_projection(layer.name) for layer in group))
        count = sum(layer.parameters for layer in group)
        row = (f"{block}: {names}", str(len(group)), str(out), str(inside), factors, f"{count:,}")
        table.add_row(*row)
    console.print(table)
    steps = max_train_steps(args, len(pictures))
    width = BYTES[args.save_precision]
    lines = {
        "base": f"{args.pretrained_model_name_or_path} ({plan.family.title})",
        "pictures": f"{len(pictures)} in {args.instance_data_dir}",
        "captions": "; ".join(dict.fromkeys(captions)),
        "resolution": f"{plan.resolution} px" + " in buckets" * args.aspect_ratio_buckets,
        "adapter": f"{args.adapter_type}, {len(plan.layers)} layers, "
        f"{plan.parameters:,} parameters",
        "adapter file": f"{plan.parameters * width / 1e6:.2f} MB in {args.save_precision}",
        "steps": f"{steps} of batch {args.train_batch_size} x {args.gradient_accumulation_steps}",
        "learning rate": _schedule_in_words(args, steps),
        "memory": in_words(estimate(args, plan)),
        "will write": "\n    ".join(_files(args, steps)),
    }
    for name, value in lines.items():
        console.print(f"  {name:14}{value}", highlight=False, markup=False)


_BLOCKS = ("attn1", "attn2", "self_attn", "ff")


def _block(layer_name: str) -> str:
    return next((part for part in layer_name.split(".") if part in _BLOCKS), "")


def _projection(layer_name: str) -> str:
    return layer_name.rpartition(f"{_block(layer_name)}.")[2]


def _schedule_in_words(args: argparse.Namespace, steps: int) -> str:
    factor = rate_factor(args, steps, args.learning_rate)
    marks = sorted({1, max(1, steps // 4), max(1, steps // 2), max(1, 3 * steps // 4), steps})
    rates = {step: args.learning_rate * factor(step - 1) for step in marks}
    points = ", ".join(f"{rate:.3g} at {step}" for step, rate in rates.items())
    return f"{args.lr_scheduler}, warm-up {args.lr_warmup_steps}: {points}"


def _files(args: argparse.Namespace, steps: int) -> list[str]:
    files = ["adapter.safetensors", "run.json", "train_log.jsonl"]
    saved = range(args.checkpointing_steps, steps + 1, args.checkpointing_steps)
    names = [f"checkpoint-{step}/" for step in saved]
    if args.checkpoints_total_limit:
        names = names[-args.checkpoints_total_limit :]
    files += names if len(names) < 5 else [names[0], "…", names[-1]]
    if args.validation_prompt:
        files.append("validation/grid.png")
    if args.report_to != "none":
        files.append(f"{args.logging_dir}/")
    return [str(args.output_dir / name) for name in files]
