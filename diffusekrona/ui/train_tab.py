"""The tab Train: pictures, settings, what they come to, and Start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from ..adapters.methods import METHODS
from ..bases.loading import bundled_models
from ..common.errors import UserError
from ..common.settings import Option, options_of
from ..common.settings_files import to_yaml, typed_values
from ..common.yaml_files import parse_yaml
from ..training.settings import TrainSettings
from . import pictures
from .checking import check_pictures
from .estimate import estimate_of
from .fields import component_for
from .form import (
    field_values,
    groups_of,
    help_of,
    hidden_settings,
    label_of,
    place_of,
    read_form,
)
from .jobs import check_paths, next_name, settings_from, start
from .places import Workspace, safe_name, subjects
from .presets import PRESETS, SD15, SDXL
from .runs import settings_of
from .views import say

FIRST = (  # shown above the groups, in this order
    "pretrained_model_name_or_path",
    "instance_prompt",
    "adapter_type",
    "a1",
    "a2",
    "rank",
    "max_train_steps",
    "learning_rate",
    "validation_prompt",
    "output_dir",
)
# What one run only is for, or the page does itself.
LEFT_OUT = ("dry_run", "lr_find", "resume_from_checkpoint", "overwrite_output_dir", "hub_token")
OPTIONS = {n: o for n, o in options_of(TrainSettings).items() if n not in LEFT_OUT}
NAMES = tuple(OPTIONS)


@dataclass(frozen=True)
class TrainTab:
    """What other tabs use of this one: its fields by name, and what is shown of them."""

    fields: Mapping[str, Any]
    shown: Sequence[Any]
    refresh: Callable[..., Any]


def _field(option: Option) -> Any:
    if option.name == "pretrained_model_name_or_path":
        choices = [*bundled_models(), SD15, SDXL]
        return component_for(option, choices=choices, value="pocket")
    return component_for(option)


def build(workspace: Workspace, running: gr.State) -> TrainTab:
    """Lay the tab out and wire it. Called inside of `gr.Blocks`."""
    fields: dict[str, Any] = {}
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            subject, changed = pictures.build(workspace)
            look = gr.Button("Check the pictures", elem_id="check-pictures")
        with gr.Column(scale=3, min_width=320):
            preset = gr.Dropdown(
                ["", *PRESETS],
                value="",
                label="preset",
                info="Values for a subject, a card and a hurry; all of them can be changed.",
                elem_id="preset",
                allow_custom_value=True,
            )
            for name in FIRST:
                fields[name] = _field(OPTIONS[name])
            with gr.Accordion("All settings", open=False):
                for title, options in groups_of(TrainSettings).values():
                    rest = [o for o in options if o.name in OPTIONS and o.name not in FIRST]
                    if rest:
                        with gr.Accordion(title, open=False):
                            for option in rest:
                                fields[option.name] = _field(option)
            with gr.Accordion("run.yaml", open=False):
                text = gr.Code(language="yaml", label="run.yaml", lines=12, elem_id="yaml")
                apply = gr.Button("Take over into the form", size="sm", elem_id="apply-yaml")
        with gr.Column(scale=2, min_width=280):
            problems = gr.HTML(elem_id="problems")
            plan = gr.HTML(elem_id="plan")
            begin = gr.Button("Start training", variant="primary", elem_id="start")
            done = gr.HTML(elem_id="started")
    sheet = gr.HTML(elem_id="checked")
    ordered = [fields[name] for name in NAMES]
    mistaken = gr.State(())
    shown = [text, problems, mistaken, *ordered]

    def check(before: Sequence[str], *typed: Any) -> list[Any]:
        return _checked(workspace, dict(zip(NAMES, typed, strict=True)), before)

    def planned(*typed: Any) -> str:
        return _planned(workspace, dict(zip(NAMES, typed, strict=True)))

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}

    def then_check(event: Any) -> Any:
        checked = event.then(check, [mistaken, *ordered], shown, **quiet)
        return checked.then(planned, ordered, plan, **quiet)

    edited = [field.input for field in ordered]
    checked = gr.on(edited, check, [mistaken, *ordered], shown, **quiet)
    checked.then(planned, ordered, plan, **quiet)
    then_check(preset.input(_preset, [preset, *ordered], ordered, **quiet))
    apply.click(_from_yaml, text, [problems, *ordered], **quiet).success(planned, ordered, plan)
    then_check(
        fields["adapter_type"].input(
            _rate_of, [fields["adapter_type"], fields["learning_rate"]], fields["learning_rate"],
            **quiet,
        )
    )  # fmt: skip
    followed = gr.on(
        [subject.change, changed.change],
        lambda name, method: _for_subject(workspace, name, method),
        [subject, fields["adapter_type"]],
        [fields[name] for name in _BY_SUBJECT],
        **quiet,
    )
    then_check(followed)

    def looked(*typed: Any) -> str:
        return _looked(workspace, dict(zip(NAMES, typed, strict=True)))

    look.click(looked, ordered, sheet, scroll_to_output=True, show_progress="minimal")

    def begin_run(*typed: Any) -> tuple[str, Any, Any]:
        return _start(workspace, dict(zip(NAMES, typed, strict=True)))

    started = begin.click(begin_run, ordered, [done, fields["output_dir"], running])
    started.then(check, [mistaken, *ordered], shown, **quiet)
    return TrainTab(fields, ordered, then_check)


_BY_SUBJECT = (
    "instance_data_dir",
    "instance_prompt",
    "validation_prompt",
    "class_data_dir",
    "output_dir",
)


def _for_subject(workspace: Workspace, name: str | None, method: str) -> list[Any]:
    """The fields that follow from the subject."""
    try:
        known = name if name in subjects(workspace) else safe_name(name or "")
    except UserError:
        return [gr.skip()] * len(_BY_SUBJECT)
    subject = f"a sks {known.replace('-', ' ')}"
    output = next_name(workspace, known, method or "run")
    return [f"data/{known}/input", subject, f"{subject} in the snow", "", output]


# --- settings -------------------------------------------------------------------------------------


def first_values(workspace: Workspace) -> dict[str, Any]:
    """What the form holds when the page is opened."""
    values = field_values(TrainSettings, dict(next(iter(PRESETS.values()))))
    names = subjects(workspace)
    if names:
        values |= zip(_BY_SUBJECT, _for_subject(workspace, names[0], "krona"), strict=True)
    return {name: values[name] for name in NAMES}


def _preset(name: str, *typed: Any) -> list[Any]:
    """The fields with a preset's values; what names the subject and the run stays."""
    if name not in PRESETS:
        return [gr.skip()] * len(NAMES)
    given = dict(zip(NAMES, typed, strict=True))
    kept = (*_BY_SUBJECT, "seed", "adapter_type", "a1", "a2", "rank")
    values = field_values(TrainSettings, PRESETS[name]) | {n: given[n] for n in kept}
    return [values[each] for each in NAMES]


def _rate_of(method: str, rate: str) -> Any:
    """The method's own learning rate, in place of another method's."""
    own = {name: str(each.learning_rate) for name, each in METHODS.items()}
    return own[method] if method in own and rate in own.values() else gr.skip()


def _mistakes(workspace: Workspace, typed: Mapping[str, Any]) -> tuple[dict, dict[str, str]]:
    """The values typed, and what is wrong with them by field."""
    values, mistakes = read_form(TrainSettings, typed)
    if not mistakes:
        try:
            settings_from(values)
            check_paths(workspace, values)
        except UserError as error:
            mistakes = {place_of(TrainSettings, str(error)): str(error)}
    return values, mistakes


def _checked(workspace: Workspace, typed: Mapping[str, Any], before: Sequence[str]) -> list[Any]:
    """Updates of the YAML, the list of mistakes, and the fields that have or had one."""
    values, mistakes = _mistakes(workspace, typed)
    text: Any = gr.skip() if mistakes else to_yaml(settings_from(values))
    lines = [
        f"{label_of(OPTIONS[name])}: {what}" if name in OPTIONS else what
        for name, what in mistakes.items()
    ]
    hidden = hidden_settings(str(typed.get("adapter_type")))
    updates = []
    for name, option in OPTIONS.items():
        look: dict[str, Any] = {"visible": name not in hidden}
        if name in mistakes:
            look |= {"info": f"✗ {mistakes[name]}", "elem_classes": ["dk-mistake"]}
        elif name in before:
            look |= {"info": help_of(option), "elem_classes": []}
        updates.append(gr.update(**look))
    return [text, say(mistakes=lines), tuple(mistakes), *updates]


def _planned(workspace: Workspace, typed: Mapping[str, Any]) -> str:
    values, mistakes = _mistakes(workspace, typed)
    if mistakes:
        return say(note="The estimate follows when the mistakes are corrected.")
    try:
        return say(facts=estimate_of(workspace, values))
    except UserError as error:
        return say(mistakes=[str(error)])


def _looked(workspace: Workspace, typed: Mapping[str, Any]) -> str:
    """What training would make of the pictures, with the form's settings."""
    values, mistakes = _mistakes(workspace, typed)
    try:
        if mistakes:
            raise UserError("; ".join(mistakes.values()))
        return check_pictures(workspace, values)
    except UserError as error:
        return say(mistakes=[str(error)])


def _from_yaml(text: str) -> list[Any]:
    """The fields from an edited YAML; a mistake in it leaves them as they are."""
    try:
        content = parse_yaml(text or "")
        if not isinstance(content, dict):
            raise UserError("run.yaml: write one setting per line, as name: value.")
        values = typed_values(TrainSettings, content, "run.yaml")
    except (UserError, ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        return [say(mistakes=[line]), *([gr.skip()] * len(NAMES))]
    filled = field_values(TrainSettings, values)
    return [say(), *(filled[name] for name in NAMES)]


def cloned(workspace: Workspace, folder: Path) -> list[Any]:
    """The fields with the settings of an earlier run, and a new name for the next."""
    values = settings_of(folder)
    values.pop("output_dir", None)
    filled = field_values(TrainSettings, values)
    subject = folder.parent.name if folder.parent != workspace.outputs else "run"
    method = str(values.get("adapter_type", "krona"))
    filled["output_dir"] = next_name(workspace, subject, method)
    return [filled[name] for name in NAMES]


def _start(workspace: Workspace, typed: Mapping[str, Any]) -> tuple[str, Any, Any]:
    values, mistakes = _mistakes(workspace, typed)
    try:
        if mistakes:
            raise UserError("; ".join(mistakes.values()))
        folder = start(workspace, values)
    except UserError as error:
        return say(mistakes=[str(error)]), gr.skip(), gr.skip()
    name = workspace.relative(folder)
    subject = folder.parent.name
    following = next_name(workspace, subject, str(values.get("adapter_type", "krona")))
    note = f"{name} has been started: see the page Watch."
    return say(note=note), following, name
