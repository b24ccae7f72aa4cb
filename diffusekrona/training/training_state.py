"""What a run must save to resume as if it had never stopped: factors, optimizer, schedule, moving
average, loss scale. Collected into plain values and tensors, and put back exactly."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..adapters.file import Adapter, named_as_in, read_adapter, save_adapter
from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError, shortened
from ..common.run_record import STATE_FILE
from .lr_schedule import move_to
from .optimizer import set_mode
from .state_file import load_state, save_state

_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "state2"}
_MISFITS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


@dataclass
class TrainingState:
    """The parts of a run whose state is kept.

    Attributes:
        models: component name to unwrapped model, those that carry the adapter.
        optimizer: as accelerate prepared it.
        lr_scheduler: torch's LambdaLR.
        ema: diffusers' EMAModel, or None.
        origin: metadata of the adapter's file, so that inference knows its base and prompt.
    """

    models: Mapping[str, nn.Module]
    optimizer: Any
    lr_scheduler: Any
    ema: Any
    origin: Mapping[str, Any]
    adapter_name: str = "default"


def save_training_state(accelerator: Any, folder: Path, step: int, state: TrainingState) -> None:
    """Write adapter.safetensors and training_state.safetensors into `folder`, which is there.

    Every process calls it. The state is the same on all of them, so the main process writes it; of
    DeepSpeed's, which is shared out, each writes its part.
    """
    if accelerator.distributed_type == "DEEPSPEED":
        accelerator.wait_for_everyone()
        accelerator.save_state(str(folder), exclude_frozen_parameters=True)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_adapter(state.models, folder / ADAPTER_FILE, state.adapter_name, metadata=state.origin)
        save_state(_collect(accelerator, step, state), folder / STATE_FILE)


def _collect(accelerator: Any, step: int, state: TrainingState) -> dict[str, Any]:
    content: dict[str, Any] = {"step": step, "schedule": state.lr_scheduler.last_epoch}
    content["ema"] = state.ema and state.ema.state_dict()
    if accelerator.distributed_type != "DEEPSPEED":
        content["optimizer"] = state.optimizer.state_dict()
        content["scaler"] = accelerator.scaler and accelerator.scaler.state_dict()
    return content


def put_back(state: TrainingState, adapter: Adapter) -> None:
    """An adapter's factors into the models that are trained, all or none.

    Raises:
        ValueError: they are not of the layers that are trained, which PEFT would leave as they are.
    """
    plan = []
    for component, model in state.models.items():
        tensors = named_as_in(model, adapter.component_tensors(component))
        own = get_peft_model_state_dict(model, adapter_name=state.adapter_name)
        if odd := sorted(tensors.keys() ^ own.keys()):
            raise ValueError(f"{len(odd)} factors are of other layers, such as {odd[0]}")
        plan.append((model, tensors))
    for model, tensors in plan:
        set_peft_model_state_dict(model, tensors, adapter_name=state.adapter_name)


@contextmanager
def as_used(state: TrainingState, trained: Sequence[nn.Parameter]) -> Generator[None]:
    """The factors as a result has them, averaged where they are; afterwards as they were, bit for
    bit."""
    before = [p.detach().clone() for p in trained]
    set_mode(state.optimizer, training=False)
    if state.ema is not None:
        state.ema.copy_to(trained)
    try:
        yield
    finally:
        set_mode(state.optimizer, training=True)
        _copy(trained, before)


@torch.no_grad()
def _copy(trained: Sequence[nn.Parameter], values: Sequence[Any]) -> None:
    for parameter, value in zip(trained, values, strict=True):
        parameter.copy_(value)


def load_training_state(accelerator: Any, folder: Path, state: TrainingState) -> int:
    """Put the state in `folder` back; returns the number of steps that it was saved at.

    Raises:
        UserError: the files cannot be read, or do not fit this run.
    """
    content = load_state(folder / STATE_FILE)
    adapter = read_adapter(folder / ADAPTER_FILE)
    if accelerator.distributed_type == "DEEPSPEED":
        with _no_free_pickles():
            accelerator.load_state(str(folder), load_module_strict=False)
    try:
        put_back(state, adapter)
        _put_back(accelerator, content, state)
        return int(content["step"])
    except _MISFITS as error:
        reason = shortened(error, 200)
        raise UserError(
            f"Cannot resume from {folder}: its state does not fit this run ({reason})."
        ) from error


def _put_back(accelerator: Any, content: dict[str, Any], state: TrainingState) -> None:
    if accelerator.distributed_type != "DEEPSPEED":
        _check_optimizer(content["optimizer"], state.optimizer)
        state.optimizer.load_state_dict(content["optimizer"])
        if accelerator.scaler is not None and content["scaler"]:
            accelerator.scaler.load_state_dict(content["scaler"])
    if state.ema is not None:
        shadows = state.ema.shadow_params
        loaded = content["ema"]["shadow_params"]
        if [s.shape for s in loaded] != [s.shape for s in shadows]:
            raise ValueError("the moving average is of other tensors")
        state.ema.load_state_dict(content["ema"])
        state.ema.to(shadows[0].device)
    if not isinstance(content["schedule"], int) or content["schedule"] < 0:
        raise ValueError("its place in the schedule is not a number of steps")
    move_to(state.lr_scheduler, content["schedule"])


def _check_optimizer(saved: dict[str, Any], optimizer: Any) -> None:
    """Raise ValueError for a state that torch would take, and stumble over in the next step."""
    groups = optimizer.param_groups
    for have, want in zip(saved["param_groups"], groups, strict=True):
        if missing := set(want) - set(have):
            raise ValueError(f"the optimizer's {min(missing)} is missing")
        odd = [key for key in want if isinstance(have[key], dict | list | str) and key != "params"]
        if any(not isinstance(want[key], type(have[key])) for key in odd):
            raise ValueError("the optimizer's settings are damaged")
    parameters = [p for group in groups for p in group["params"]]
    names = {frozenset(values) for values in saved["state"].values()}
    library = type(optimizer.optimizer).__module__.startswith("pytorch_optimizer")
    if not library and (len(names) > 1 or any("step" not in each for each in names)):
        raise ValueError("the optimizer's moments are incomplete")
    for number, values in saved["state"].items():
        for name in _MOMENTS & set(values):
            if values[name].shape != parameters[number].shape:
                raise ValueError(f"the optimizer's {name} {number} is of another shape")
        if isinstance(optimizer.optimizer, torch.optim.AdamW) and not set(values) >= _ADAMW:
            raise ValueError("the optimizer's moments are incomplete")


@contextmanager
def _no_free_pickles() -> Generator[None]:
    """Let `torch.load` build tensors and plain values only, whoever calls it, and beside them the
    three kinds of object that DeepSpeed's own files hold."""
    # DeepSpeed is optional, and not installed where the types are checked.
    from deepspeed.runtime.fp16 import loss_scaler  # pyright: ignore[reportMissingImports]
    from deepspeed.runtime.zero.config import ZeroStageEnum  # pyright: ignore[reportMissingImports]
    from deepspeed.utils.tensor_fragment import fragment_address  # pyright: ignore[reportMissingImports]

    scalers = [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler]
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([*scalers, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {found[1]}" if found else "it is not a state that can be read"
        raise UserError(f"Cannot resume: DeepSpeed's state was refused ({what}).") from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
