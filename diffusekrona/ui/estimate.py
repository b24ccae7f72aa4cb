"""What a run is going to train, need and take, before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bases.precision import BYTES
from ..common.run_record import read_run_record_or_none
from ..plan import cost_of
from .jobs import settings_from
from .places import Workspace, run_folders
from .runs import settings_of

# What the time of a step depends on most, besides the machine.
_SAME = ("pretrained_model_name_or_path", "resolution", "train_batch_size", "adapter_type")


def estimate_of(workspace: Workspace, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of a run with these settings. Reads configs; no weights are loaded.

    Raises:
        UserError: a base, factors or a resolution that cannot work.
    """
    from ..bases.loading import quiet_libraries
    from ..bases.meta import trusting_no_config
    from ..training.memory.estimate import estimate, in_words
    from ..training.resolved_run import resolve_run

    quiet_libraries()
    settings = settings_from(values)
    resolved = resolve_run(settings.base, settings.adapter, settings.data.resolution)
    with trusting_no_config(f"the configs of {resolved.base}"):
        phases = estimate(
            settings.base,
            settings.optimisation,
            settings.precision,
            settings.prior,
            settings.validation,
            resolved,
        )
    size = resolved.parameters * BYTES[settings.output.save_precision] / 1e6
    lines = [
        ("Base", f"{resolved.family.title}, {resolved.resolution} px"),
        ("Adapter", f"{resolved.parameters:,} parameters in {len(resolved.layers)} layers"),
        ("File", f"{size:.2f} MB"),
        ("Memory", in_words(phases).partition(" (")[0]),
    ]
    if settings.adapter.adapter_type == "krona":
        shapes = [(layer.out_features, layer.in_features) for layer in resolved.layers]
        pair = (settings.adapter.a1, settings.adapter.a2)
        cost = cost_of(pair, shapes, settings.adapter.terms)
        lines.append(("Cost", f"{cost.slowdown:.1%} of the adapted layers' own multiplications"))
    if words := _time(workspace, values, settings.optimisation.max_train_steps or 1000):
        lines.append(("Time", words))
    return lines


def _time(workspace: Workspace, values: Mapping[str, Any], steps: int) -> str:
    """As long as the newest finished run like this one took per step; "" if there is none."""
    for folder in run_folders(workspace):
        record, others = read_run_record_or_none(folder), settings_of(folder)
        alike = all(_plain(others.get(name)) == _plain(values.get(name)) for name in _SAME)
        if record and record.seconds_training and record.steps and alike:
            each = record.seconds_training / record.steps
            return f"{duration(each * steps)}, as {workspace.relative(folder)} took"
    return ""


def _plain(value: Any) -> str:
    return "" if value is None else str(Path(value) if isinstance(value, Path) else value)


def duration(seconds: float) -> str:
    """ "3 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
