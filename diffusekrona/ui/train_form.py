"""The contents of the training form: filled, read, checked, and started as a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..adapters.methods import METHODS
from ..common.errors import UserError
from ..common.settings import options_of
from ..common.settings_files import to_yaml, typed_values
from ..common.yaml_files import parse_yaml
from ..training.settings import TrainSettings
from .checking import check_pictures
from .estimate import check_fit, estimate_of
from .filling import Answer, answered
from .following import FOLLOWING, LEADING, check_base, defaults_of, hidden_settings, usual_values
from .form import (
    field_values,
    help_of,
    label_of,
    place_of,
    places_of,
    read_form,
    without_flags,
)
from .jobs import check_paths, check_pictures_there, next_name, settings_from, start
from .places import Workspace, first_subject, safe_name, subjects
from .presets import PRESETS
from .runs import settings_of
from .views import say

# What one run only is for, or the page does itself, or could write outside of outputs/.
LEFT_OUT = (
    "dry_run", "lr_find", "resume_from_checkpoint", "overwrite_output_dir", "hub_token",
    "logging_dir",
)  # fmt: skip
OPTIONS = {n: o for n, o in options_of(TrainSettings).items() if n not in LEFT_OUT}
NAMES = tuple(OPTIONS)
BY_SUBJECT = (
    "instance_data_dir",
    "instance_prompt",
    "validation_prompt",
    "class_data_dir",
    "output_dir",
)
# Fields that the page fills in again when the base or the method changes, unless they were edited.
FILLED = (*FOLLOWING, "output_dir")
Usual = list[dict[str, Any]]  # what the page filled in before, and what it would now


# --- filled ---------------------------------------------------------------------------------------


def for_subject(workspace: Workspace, name: str | None, method: str) -> dict[str, str]:
    """The contents of the fields in BY_SUBJECT; none for a name that cannot be one."""
    try:
        known = name if name in subjects(workspace) else safe_name(name or "")
    except UserError:
        return {}
    subject = f"a sks {known.removeprefix('my-').replace('-', ' ')}"
    output = next_name(workspace, known, method or "run")
    values = (f"data/{known}/input", subject, f"{subject} in the snow", "", output)
    return dict(zip(BY_SUBJECT, values, strict=True))


def first_values(workspace: Workspace) -> list[Any]:
    """What the form holds when the page is opened: the usual values, then the fields."""
    values = _preset_values(next(iter(PRESETS.values())), {"adapter_type": "krona"})
    usual = [{}, {name: values[name] for name in FOLLOWING}]
    values |= for_subject(workspace, first_subject(workspace), "krona")
    return [usual, *(values[name] for name in NAMES)]


def first_plan(workspace: Workspace) -> None:
    """The estimate of the form as it is opened, for the libraries that it reads."""
    _, *values = first_values(workspace)
    planned(workspace, dict(zip(NAMES, values, strict=True)), ())


def _preset_values(preset: Mapping[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """The contents of all fields with a preset: those kept, its own, and else the usual ones."""
    own = field_values(TrainSettings, preset)
    usual = usual_values(own | kept, {})
    return own | usual | {name: own[name] for name in preset} | kept


def with_preset(name: str, applied: str, usual: Usual, *typed: Any) -> list[Any]:
    """The preset's name, the usual values and what fills the fields with a preset; what names the
    subject and the run stays, and so do the method and edited factors.

    Args:
        applied: the preset that the form was filled with: a list that is left as it was fills
            nothing again.
    """
    if name not in PRESETS or name == applied:
        return [gr.skip(), gr.skip(), {}]
    given = dict(zip(NAMES, typed, strict=True))
    edited = [n for n in ("a1", "a2") if given[n] != usual[1].get(n)]
    kept = (*BY_SUBJECT, "seed", "adapter_type", "rank", *edited)
    values = _preset_values(PRESETS[name], {n: given[n] for n in kept})
    filled = {n: values[n] for n in FOLLOWING if n not in edited}
    return [name, [{}, filled], {n: values[n] for n in NAMES if n not in kept}]


def followed(workspace: Workspace, usual: Usual, output: str, *leading: Any) -> Usual:
    """What the page had filled in, and what it fills in now, for another base or method."""
    before = dict(usual[1])
    typed: dict[str, Any] = dict(zip(LEADING, leading, strict=True))
    now = usual_values(typed, before)
    own = re.fullmatch(r"outputs/([^/]+)/(\w+)-\d+", output)
    method = str(typed["adapter_type"])
    if own and own[2] in METHODS and method in METHODS and method != own[2]:
        before["output_dir"] = output
        now["output_dir"] = next_name(workspace, own[1], method)
    return [before, now]


# In the browser, where the fields are as they are now: the answer to `followed` may come late.
FILL = f"""([before, now], ...values) => {{
  const names = {json.dumps(FILLED)};
  {answered("followed")}
  return values.map((value, i) => names[i] in now && before[names[i]] === value
    ? now[names[i]] : value);
}}"""


def _filled_with(values: Mapping[str, Any]) -> tuple[Usual, Answer]:
    """The usual values and what fills the fields, from a run's values."""
    filled = field_values(TrainSettings, {**defaults_of(values), **values})
    return [{}, usual_values(filled, {})], {name: filled[name] for name in NAMES}


def from_yaml(text: str) -> list[Any]:
    """A message, the usual values and what fills the fields, from an edited YAML; a mistake in it
    leaves them as they are."""
    try:
        content = parse_yaml(text or "")
        if not isinstance(content, dict):
            raise UserError("run.yaml: write one setting per line, as name: value.")
        values = typed_values(TrainSettings, content, "run.yaml")
    except (UserError, ValueError) as error:
        line = " ".join(str(error).split())
        return [say(mistakes=[line]), gr.skip(), {}]
    return [say(), *_filled_with(values)]


def cloned(workspace: Workspace, folder: Path) -> tuple[Usual, Answer]:
    """The usual values and what fills the fields with the settings of an earlier run, and a new
    name for the next."""
    values = settings_of(folder)
    subject = folder.parent.name if folder.parent != workspace.outputs else "run"
    method = str(values.get("adapter_type", "krona"))
    values["output_dir"] = Path(next_name(workspace, subject, method))
    return _filled_with(values)


# --- read -----------------------------------------------------------------------------------------


def _mistakes(
    workspace: Workspace, typed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values typed, and what is wrong with them by field. Fields that are hidden are not read:
    their settings have their defaults."""
    hidden = hidden_settings(typed)
    shown = {name: value for name, value in typed.items() if name not in hidden}
    values, mistakes = read_form(TrainSettings, shown, defaults_of(typed))
    if not mistakes:
        place = ""
        try:
            settings_from(values)
            check_paths(workspace, values)
            place = "pretrained_model_name_or_path"
            check_base(values)
        except UserError as error:
            mistakes = {place_of(TrainSettings, str(error)) or place: str(error)}
    return values, mistakes


def checked(workspace: Workspace, typed: Mapping[str, Any], before: Sequence[str]) -> list[Any]:
    """The YAML, None if there are mistakes; updates of their list, and of the fields that have or
    had one."""
    values, mistakes = _mistakes(workspace, typed)
    text = None if mistakes else to_yaml(settings_from(values))
    lines = [
        f"{label_of(OPTIONS[name])}: {what}" if name in OPTIONS else what
        for name, what in mistakes.items()
    ]
    hidden, marks = hidden_settings(typed), _marks(mistakes, before)
    updates = [gr.update(visible=n not in hidden, **marks.get(n, {})) for n in OPTIONS]
    return [text, say(mistakes=lines), tuple(mistakes), *updates]


def _marks(mistakes: Mapping[str, str], before: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the fields look that have a mistake, or had one before."""
    plain = {n: {"info": help_of(OPTIONS[n]), "elem_classes": []} for n in before if n in OPTIONS}
    return plain | {
        name: {"info": f"✗ {without_flags(what)}", "elem_classes": ["dk-mistake"]}
        for name, what in mistakes.items()
        if name in OPTIONS
    }


def planned(workspace: Workspace, typed: Mapping[str, Any], before: Sequence[str]) -> list[Any]:
    """The estimate, or why there is none; names of fields that do not fit the base; updates of
    those that do not, or did not before."""
    values, mistakes = _mistakes(workspace, typed)
    misfits: dict[str, str] = {}
    try:
        if mistakes:
            text = say(note="The estimate follows when the mistakes are corrected.")
        else:
            text = say(facts=estimate_of(workspace, values))
    except UserError as error:
        text = say(mistakes=[str(error)])
        misfits = dict.fromkeys(places_of(TrainSettings, str(error), values), str(error))
    marks = _marks(misfits, [name for name in before if name not in mistakes])
    updates = [gr.update(**marks[name]) if name in marks else gr.skip() for name in OPTIONS]
    return [text, tuple(misfits), *updates]


def looked(workspace: Workspace, typed: Mapping[str, Any]) -> str:
    """What training would make of the pictures, with the form's settings."""
    values, mistakes = _mistakes(workspace, typed)
    try:
        if mistakes:
            raise UserError("; ".join(mistakes.values()))
        check_pictures_there(workspace, values["instance_data_dir"])
        return check_pictures(workspace, values)
    except UserError as error:
        return say(mistakes=[str(error)])


def started(workspace: Workspace, typed: Mapping[str, Any]) -> tuple[str, Answer, str | None]:
    """Start the run: what to say, what fills in a folder for the next one, and the run's name; None
    if it could not be started."""
    values, mistakes = _mistakes(workspace, typed)
    try:
        if mistakes:
            raise UserError("; ".join(mistakes.values()))
        check_pictures_there(workspace, values["instance_data_dir"])
        check_fit(values)
        folder = start(workspace, values)
    except UserError as error:
        return say(mistakes=[str(error)]), {}, None
    name = workspace.relative(folder)
    subject = folder.parent.name
    following = next_name(workspace, subject, str(values.get("adapter_type", "krona")))
    note = f"{name} has been started: it is on the tab Watch."
    return say(note=note), {"output_dir": following}, name
