"""Pictures with the inference program's own functions, the base kept in memory between them."""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import inference
from ..adapters.layout import ADAPTER_FILE
from ..bases.schedulers import SCHEDULERS
from ..common.command_line import arguments_of
from ..common.errors import UserError
from ..common.pictures import content_key
from ..common.settings import build, check_limits, flat, options_of, with_values
from ..sampling.settings import InferenceSettings, check_size, parse_steps
from .libraries import wait_for_libraries
from .places import Workspace, adapter_files, inside

if TYPE_CHECKING:
    from ..adapters.mixing import WeightedAdapter

PICTURES = "outputs/pictures"
CONVERTED = "outputs/converted"
_one_at_a_time = threading.Lock()  # two browsers share the base and its adapters
_stops: set[threading.Event] = set()  # that of the drawing under way


class Stopped(Exception):
    """The drawing was stopped by `stop`."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One column of a comparison: its name, and the settings that draw it."""

    label: str
    settings: InferenceSettings


def settings_from(workspace: Workspace, values: Mapping[str, Any]) -> InferenceSettings:
    """The settings of `diffusekrona draw` from values by name.

    Raises:
        UserError: values that cannot work; an adapter that is not in outputs/.
    """
    fixed = {"output_dir": Path(PICTURES), "no_merge": True}
    settings = check_limits(build(InferenceSettings, {**values, **fixed}))
    check_size(settings.drawing)
    parse_steps(settings.model.adapter_steps)
    for text in settings.model.adapter:
        inside(workspace, text.rpartition(":")[0], ("outputs",))
    return settings


def weighted(chosen: Sequence[tuple[str | None, float]]) -> tuple[str, ...]:
    """Adapters and weights as `--adapter` takes them; rows without an adapter are left out."""
    return tuple(f"{name}:{weight:g}" for name, weight in chosen if name)


def variants(
    workspace: Workspace,
    settings: InferenceSettings,
    *,
    base_too: bool,
    weights: Sequence[float] = (),
    checkpoints: bool = False,
) -> list[Variant]:
    """The columns of a comparison: the base, then the first adapter's checkpoints and weights."""
    adapters = settings.model.adapter
    if not adapters:
        return [Variant("the base", settings)]
    name, _, own = adapters[0].rpartition(":")
    names = [name]
    if checkpoints:
        run = workspace.root / Path(name).parent
        found = sorted(run.glob(f"checkpoint-*/{ADAPTER_FILE}"), key=_step)
        names = [*(workspace.relative(path) for path in found), name]
    columns = []
    if base_too:
        off = tuple(f"{text.rpartition(':')[0]}:0" for text in adapters)
        columns.append(Variant("the base", with_values(settings, adapter=off)))
    for each in names:
        for weight in weights or [float(own)]:
            mixed = (f"{each}:{weight:g}", *adapters[1:])
            label = f"{Path(each).parent.name} × {weight:g}"
            columns.append(Variant(label, with_values(settings, adapter=mixed)))
    return columns


def _step(path: Path) -> tuple[int, str]:
    step = path.parent.name.rpartition("-")[2]
    return (int(step) if step.isdecimal() else 0, path.parent.name)


# --- drawing --------------------------------------------------------------------------------------


def stop() -> None:
    """End the drawing under way after the denoising step at hand, instead of after its pictures."""
    for one in tuple(_stops):
        one.set()


@contextmanager
def _stoppable() -> Generator[Callable[[], None]]:
    """What raises Stopped once `stop` was called."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    _stops.add(stopped)
    try:
        yield check
    finally:
        _stops.discard(stopped)


def draw(settings: InferenceSettings) -> list[Path]:
    """Draw and save; the pictures' paths, prompt by prompt. Raises UserError, and Stopped.

    Weights and adapters change without loading the base again. Adapters that are drawn a second
    time with the same weights are merged, which is faster and the same picture but for rounding.
    """
    from ..adapters.groups import parse_groups
    from ..adapters.mixing import choose_base, read_adapters, reading_options
    from ..bases.schedulers import set_scheduler
    from ..common.devices import process_state
    from .live import loaded

    wait_for_libraries()
    model, machine = settings.model, settings.machine
    with _one_at_a_time, _stoppable() as check:
        groups = parse_groups(model.blocks, model.projections, model.attention)
        adapters = read_adapters(model.adapter, groups)
        prompts = inference.choose_prompts(settings.pictures, adapters)
        reading = reading_options(adapters, settings.reading.options())
        configs = reading.get("single_file_config")
        base = choose_base(model.pretrained_model_name_or_path, adapters, model.revision, configs)
        files = _files(adapters)
        settings = inference.with_defaults(settings, base, reading)
        options = {"vae": model.vae, "variant": model.variant, "low_vram": machine.low_vram}
        options |= {"mixed_precision": machine.mixed_precision}
        # --low_vram keeps weights in host memory: adapters are there from the start, unmerged.
        first = files if machine.low_vram else ()
        live = loaded(base, first, tuple(reading.items()), tuple(options.items()))
        live.carry(adapters, files)
        merges = bool(adapters) and not (model.adapter_steps or machine.low_vram)
        merged = live.weigh(adapters, merges)
        pipeline = live.pipeline
        pipeline.scheduler = live.scheduler
        if settings.drawing.scheduler:
            set_scheduler(pipeline, settings.drawing.scheduler)
        settings = with_values(settings, no_merge=not merged)
        recipe = inference.recipe_of(settings, base, adapters, pipeline)
        state = process_state(machine.device)
        return inference.draw(settings, prompts, pipeline, None, recipe, state, check)


def _files(adapters: Sequence[WeightedAdapter]) -> tuple[tuple[str, int], ...]:
    """Adapters by path and time of change. Raises UserError for one that is gone meanwhile."""
    try:
        return tuple((str(one.path), one.path.stat().st_mtime_ns) for one in adapters)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error


def usable(workspace: Workspace, name: str) -> str:
    """An adapter file that `diffusekrona draw` reads: itself, or what it was converted to.

    Raises:
        UserError: it is not in outputs/, or in no format that can be read.
    """
    from safetensors import SafetensorError, safe_open

    wait_for_libraries()
    path = inside(workspace, name, ("outputs",))
    try:
        open(path, "rb").close()  # its own message of what is wrong is the plainer one
        with safe_open(path, "pt") as file:
            if "diffusekrona" in (file.metadata() or {}):
                return name
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be read: {why}.") from error
    from ..adapters.file import write_adapter
    from ..formats.to_adapter import read_as_adapter

    new = workspace.root / CONVERTED / f"{path.stem}-{content_key(path)[:8]}.safetensors"
    if not new.is_file():
        write_adapter(read_as_adapter(path), new)
    return workspace.relative(new)


# --- commands and recipes -------------------------------------------------------------------------


def flags_of(cls: type, values: Mapping[str, Any]) -> list[str]:
    """The command line that gives a program these values; those left out have their defaults."""
    options = options_of(cls)
    return arguments_of(cls, {k: v for k, v in values.items() if v != options[k].default})


def command_of(settings: InferenceSettings) -> str:
    """The command that draws the same pictures."""
    return shlex.join(["diffusekrona", "draw", *flags_of(InferenceSettings, flat(settings))])


def values_of_recipe(
    workspace: Workspace, recipe: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, float]], list[str]]:
    """What a picture was drawn with: settings by name, adapters with weights, and one line for
    each thing that is not here."""
    wait_for_libraries()
    names = {"prompt": "prompt", "negative_prompt": "negative_prompt", "seed": "seeds"}
    names |= {"steps": "num_inference_steps", "guidance": "guidance_scale", "height": "height"}
    names |= {"width": "width", "base": "pretrained_model_name_or_path"}
    names["adapter_steps"] = "adapter_steps"
    options = options_of(InferenceSettings)
    values: dict[str, Any] = {}
    for key, name in names.items():
        value = recipe.get(key)
        if isinstance(value, str | int | float):
            values[name] = (value,) if options[name].many else value
    if scheduler := _scheduler(recipe):
        values["scheduler"] = scheduler
    adapters, missing = [], []
    given = recipe.get("adapters")
    for one in given if isinstance(given, list) else []:
        if not isinstance(one, dict):
            continue
        name, weight = _find(workspace, one), one.get("weight", 1.0)
        if name is None:
            missing.append(f"The adapter {one.get('file')} is not in outputs/ any more.")
        elif isinstance(weight, int | float):
            adapters.append((name, float(weight)))
    return values, adapters, missing


def _scheduler(recipe: Mapping[str, Any]) -> str | None:
    """The scheduler by name; None where it is the base's own."""
    from ..bases.loading import read_json_of
    from ..bases.resolve import resolve_base

    kind = recipe.get("scheduler")
    try:
        place = resolve_base(str(recipe.get("base")))
        own = read_json_of(place, "scheduler", "scheduler_config.json", None)
    except UserError:
        own = {}
    if kind == own.get("_class_name"):
        return None
    return next((name for name, (cls, _) in SCHEDULERS.items() if cls == kind), None)


def _find(workspace: Workspace, one: Mapping[str, Any]) -> str | None:
    """The adapter file with a recipe's checksum; those of the same name are looked at first."""
    name = str(one.get("file"))
    files = sorted(adapter_files(workspace), key=lambda file: not file.endswith(f"/{name}"))
    for file in files:
        if content_key(workspace.root / file) == one.get("sha256"):
            return file
    return None
