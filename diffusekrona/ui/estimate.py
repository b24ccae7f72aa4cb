"""What a run is going to train, need and take, before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bases.precision import BYTES
from ..common.errors import UserError
from ..common.run_record import TRAIN_LOG, read_run_record_or_none
from ..common.settings import flat
from .jobs import settings_from
from .libraries import wait_for_libraries
from .places import Workspace, run_folders
from .runs import log_lines, settings_of, speed_of

if TYPE_CHECKING:
    from ..training.resolved_run import ResolvedRun
    from ..training.settings import TrainSettings

_SAME = ("pretrained_model_name_or_path", "adapter_type")
_MOST_RUNS = 50  # that are looked at for their speed


def estimate_of(workspace: Workspace, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of a run with these settings. Reads configs; no weights are loaded.

    Raises:
        UserError: a base, factors or a resolution that cannot work.
    """
    from ..bases.loading import quiet_libraries
    from ..bases.meta import trusting_no_config
    from ..training.memory.estimate import estimate, in_words
    from ..training.resolved_run import resolve_run

    wait_for_libraries()
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
    costs = [layer.multiplications for layer in resolved.layers if layer.multiplications]
    if costs:
        own = sum(layer.out_features * layer.in_features for layer in resolved.layers)
        words = f"{sum(costs) / own:.1%} more multiplications in the adapted layers"
        lines.append(("Cost", f"{words} until it is merged"))
    steps = _steps(settings, resolved)
    time = "known once the pictures are there"
    if steps:
        time = _time(workspace, flat(settings), steps, resolved.resolution)
    lines.append(("Time", time))
    return lines


def _steps(settings: TrainSettings, resolved: ResolvedRun) -> int | None:
    """Steps of the run; None where they depend on pictures that cannot be read."""
    from ..data.examples import look_through
    from ..data.holdout import split_held_out
    from ..training.resolved_run import max_train_steps

    optimisation, examples = settings.optimisation, []
    try:
        if optimisation.num_train_epochs:
            found, _ = look_through(settings.data, optimisation.seed)
            examples, _ = split_held_out(found, settings.data, optimisation.seed)
        return max_train_steps(optimisation, examples, resolved)
    except UserError:
        return None


def check_fit(values: Mapping[str, Any]) -> None:
    """Refuse a base that cannot be read, and factors or a resolution that do not fit it, with which
    a run would end at once. Raises UserError."""
    from ..training.resolved_run import resolve_run

    wait_for_libraries()
    settings = settings_from(values)
    resolve_run(settings.base, settings.adapter, settings.data.resolution)


def _time(workspace: Workspace, wanted: Mapping[str, Any], steps: int, resolution: int) -> str:
    """At the speed of the newest run with the same base and method, by pictures and pixels."""
    for folder in run_folders(workspace)[:_MOST_RUNS]:
        other = {**wanted, **settings_of(folder)}
        if any(str(other[name]) != str(wanted[name]) for name in _SAME):
            continue
        if each := _seconds_per_step(folder):
            each *= _work(wanted, resolution) / _work(other, resolution)
            return f"about {duration(each * steps)}, as fast as {workspace.relative(folder)}"
    return "known after the first steps of a run like this"


def _seconds_per_step(folder: Path) -> float | None:
    record = read_run_record_or_none(folder)
    if record and record.seconds_training and record.steps:
        return record.seconds_training / record.steps
    speed = speed_of(log_lines(folder / TRAIN_LOG))
    return 1 / speed if speed else None


def _work(settings: Mapping[str, Any], resolution: int) -> float:
    """Pixels of all pictures of a step."""
    pictures = settings["train_batch_size"] * settings["gradient_accumulation_steps"]
    return pictures * (settings["resolution"] or resolution) ** 2


def duration(seconds: float) -> str:
    """ "3 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
