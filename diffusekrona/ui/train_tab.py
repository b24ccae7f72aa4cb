"""The tab Train: pictures, settings, what they come to, and Start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..bases.families import FAMILIES
from ..bases.loading import bundled_models
from ..common.settings import Option
from ..training.settings import TrainSettings
from . import pictures, train_form
from .fields import component_for
from .following import LEADING
from .form import groups_of
from .places import Workspace
from .presets import PRESETS
from .train_form import BY_SUBJECT, FILL, FILLED, NAMES, OPTIONS

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


@dataclass(frozen=True)
class TrainTab:
    """What other tabs use of this one: its fields by name, and what is shown of them."""

    fields: Mapping[str, Any]
    shown: Sequence[Any]
    refresh: Callable[..., Any]


def _field(option: Option) -> Any:
    if option.name == "pretrained_model_name_or_path":
        choices = [*bundled_models(), *(each.default_base for each in FAMILIES.values())]
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
    usual = gr.JSON([{}, {}], visible="hidden", elem_id="usual")
    mistaken = gr.State(())
    shown = [text, problems, mistaken, *ordered]

    def by_name(typed: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(NAMES, typed, strict=True))

    def check(before: Sequence[str], *typed: Any) -> list[Any]:
        return train_form.checked(workspace, by_name(typed), before)

    def plan_of(*typed: Any) -> str:
        return train_form.planned(workspace, by_name(typed))

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}

    def then_check(event: Any) -> Any:
        checked = event.then(check, [mistaken, *ordered], shown, **quiet)
        return checked.then(plan_of, ordered, plan, **quiet)

    edited = [fields[name].input for name in NAMES if name not in LEADING]
    checked = gr.on(edited, check, [mistaken, *ordered], shown, **quiet)
    checked.then(plan_of, ordered, plan, **quiet)
    then_check(
        preset.input(train_form.with_preset, [preset, usual, *ordered], [usual, *ordered], **quiet)
    )
    apply.click(train_form.from_yaml, text, [problems, usual, *ordered], **quiet).success(
        plan_of, ordered, plan
    )
    leading = [fields[name] for name in LEADING]
    filled = [fields[name] for name in FILLED]
    followed = gr.on(
        [field.input for field in leading],
        lambda *given: train_form.followed(workspace, *given),
        [usual, fields["output_dir"], *leading], usual, **quiet,
    )  # fmt: skip
    then_check(followed.then(None, [usual, *filled], filled, js=FILL, **quiet))
    named = gr.on(
        [subject.change, changed.change],
        lambda name, method: train_form.for_subject(workspace, name, method),
        [subject, fields["adapter_type"]], [fields[name] for name in BY_SUBJECT], **quiet,
    )  # fmt: skip
    then_check(named)

    def look_at(*typed: Any) -> str:
        return train_form.looked(workspace, by_name(typed))

    look.click(look_at, ordered, sheet, scroll_to_output=True, show_progress="minimal")

    def begin_run(*typed: Any) -> tuple[str, Any, Any]:
        return train_form.started(workspace, by_name(typed))

    started = begin.click(begin_run, ordered, [done, fields["output_dir"], running])
    started.then(check, [mistaken, *ordered], shown, **quiet)
    return TrainTab(fields, [usual, *ordered], then_check)
