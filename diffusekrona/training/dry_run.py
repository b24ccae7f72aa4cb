"""What `--dry_run` prints: the resolved run, its memory, its schedule, its files.

Answered from configs alone; no weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..adapters.layers import AdaptedLayer
from ..adapters.layout import ADAPTER_FILE
from ..bases.meta import trusting_no_config
from ..bases.precision import BYTES
from ..bases.settings import BaseSettings, PrecisionSettings
from ..common.run_record import RUN_RECORD, RUN_SETTINGS, TRAIN_LOG
from ..data.examples import Example
from ..data.settings import DataSettings, PriorSettings
from .lr_schedule import rate_factor
from .memory.estimate import estimate, in_words
from .resolved_run import ResolvedRun, max_train_steps
from .settings import OptimisationSettings, OutputSettings, ValidationSettings

if TYPE_CHECKING:
    from rich.table import Table


def print_run(
    base: BaseSettings,
    data: DataSettings,
    prior: PriorSettings,
    optimisation: OptimisationSettings,
    precision: PrecisionSettings,
    validation: ValidationSettings,
    output: OutputSettings,
    resolved: ResolvedRun,
    examples: Sequence[Example],
) -> None:
    """Print the resolved run: what is trained, for how long, and which files it will write."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.print(_layers_table(resolved))
    with trusting_no_config(f"the configs of {resolved.base}"):
        memory = in_words(estimate(base, optimisation, precision, prior, validation, resolved))
    steps = max_train_steps(optimisation, examples, resolved)
    lines = {
        "base": f"{base.pretrained_model_name_or_path} ({resolved.family.title})",
        **_data_in_words(data, examples),
        "resolution": f"{resolved.resolution} px" + " in buckets" * data.aspect_ratio_buckets,
        "adapter": f"{resolved.method.name}, {len(resolved.layers)} layers, "
        f"{resolved.parameters:,} parameters",
        "adapter file": f"{resolved.parameters * BYTES[output.save_precision] / 1e6:.2f} MB in "
        f"{output.save_precision}",
        "steps": f"{steps} of batch {optimisation.train_batch_size} x "
        f"{optimisation.gradient_accumulation_steps}",
        "learning rate": _schedule_in_words(optimisation, steps),
        "memory": memory,
        "will write": "\n    ".join(_files(output, validation, steps)),
    }
    for name, value in lines.items():
        console.print(f"  {name:14}{value}", highlight=False, markup=False)


def _data_in_words(data: DataSettings, examples: Sequence[Example]) -> dict[str, str]:
    masks = sum(example.mask is not None for example in examples)
    return {
        "pictures": f"{len(examples)} in {data.instance_data_dir}"
        + f", {masks} with a mask" * data.masked_loss,
        "captions": "; ".join(dict.fromkeys(c for e in examples for c in e.captions)),
    }


def _layers_table(resolved: ResolvedRun) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Adapted layers", box=box.SIMPLE, title_justify="left")
    for column in ("where", "layers", "out", "in", "factors or rank", "parameters"):
        numeric = column in ("layers", "out", "in", "parameters")
        table.add_column(column, justify="right" if numeric else "left")
    groups: dict[tuple[str, int, int, str], list[AdaptedLayer]] = {}
    for layer in resolved.layers:
        block = f"{layer.component} {_block(layer.name)}"
        key = (block, layer.out_features, layer.in_features, layer.factors)
        groups.setdefault(key, []).append(layer)
    for (block, out, in_features, factors), group in sorted(groups.items()):
        names = ", ".join(dict.fromkeys(_projection(layer.name) for layer in group))
        count = sum(layer.parameters for layer in group)
        row = (
            f"{block}: {names}",
            str(len(group)),
            str(out),
            str(in_features),
            factors,
            f"{count:,}",
        )
        table.add_row(*row)
    return table


_BLOCKS = ("attn1", "attn2", "self_attn", "ff")


def _block(layer_name: str) -> str:
    parts = layer_name.split(".")
    return next((part for part in parts if part in _BLOCKS), parts[0])


def _projection(layer_name: str) -> str:
    inner = layer_name.rpartition(f"{_block(layer_name)}.")[2]
    return re.sub(r"^\d+\.", "", inner)  # the number in a transformer's list of blocks


def _schedule_in_words(optimisation: OptimisationSettings, steps: int) -> str:
    factor = rate_factor(optimisation, steps, optimisation.learning_rate)
    marks = sorted({1, max(1, steps // 4), max(1, steps // 2), max(1, 3 * steps // 4), steps})
    rates = {step: optimisation.learning_rate * factor(step - 1) for step in marks}
    points = ", ".join(f"{rate:.3g} at {step}" for step, rate in rates.items())
    return f"{optimisation.lr_scheduler}, warm-up {optimisation.lr_warmup_steps}: {points}"


def _files(output: OutputSettings, validation: ValidationSettings, steps: int) -> list[str]:
    files = [ADAPTER_FILE, RUN_RECORD, RUN_SETTINGS, TRAIN_LOG]
    saved = range(output.checkpointing_steps, steps + 1, output.checkpointing_steps)
    if output.checkpoints_total_limit:
        saved = saved[-output.checkpoints_total_limit :]
    many = len(saved[4:5]) > 0  # the length of a range has a limit
    names = [f"checkpoint-{step}/" for step in ((saved[0], saved[-1]) if many else saved)]
    files += [names[0], "…", names[-1]] if many else names
    if validation.validation_prompt:
        files.append("validation/grid.png")
    if output.report_to != "none":
        files.append(f"{output.logging_dir}/")
    return [str(output.output_dir / name) for name in files]
