"""The tab Train: pictures, settings, what they come to, and Start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..bases.bundled import bundled_models
from ..bases.families import FAMILIES
from ..common.settings import Option
from ..training.settings import TrainSettings
from . import pictures, train_form
from .fields import component_for
from .filling import QUIET, answer, ask, fill, when_filled
from .following import LEADING
from .form import groups_of
from .places import Workspace, first_subject, subjects
from .presets import PRESETS
from .train_form import BY_SUBJECT, FILL, FILLED, NAMES, OPTIONS

FIRST = (  # shown above the groups, in this order
    "pretrained_model_name_or_path",
    "instance_prompt",
    "validation_prompt",
    "max_train_steps",
    "output_dir",
)
METHOD = ("adapter_type", "a1", "a2", "rank", "learning_rate")


@dataclass(frozen=True)
class TrainTab:
    """What the page and other tabs use of this one: where the usual values are kept, what fills
    its form from an answer and checks it then, and what fills it when the page is opened."""

    usual: Any
    fill: Callable[[Any, Any, str], None]
    load: Callable[[gr.Blocks], None]


# The button that was pressed is on a tab that is not shown any more.
FOCUS = """() => {
  const pressed = document.activeElement;
  if (!pressed || pressed === document.body || !pressed.offsetParent)
    document.querySelector("[role=tab][aria-selected=true]")?.focus();
}"""
NEXT = "number => number + 1"


def _field(option: Option) -> Any:
    if option.name == "pretrained_model_name_or_path":
        choices = [*bundled_models(), *(each.default_base for each in FAMILIES.values())]
        return component_for(option, choices=choices, value="pocket")
    return component_for(option)


def build(workspace: Workspace, running: gr.State, tabs: gr.Tabs) -> TrainTab:
    """Lay the tab out and wire it. Called inside of `gr.Blocks`."""
    fields: dict[str, Any] = {}
    folded: list[tuple[Any, set[str]]] = []  # what opens when one of its fields has a mistake
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            subject = pictures.build(workspace)
            look = gr.Button("Check the pictures", elem_id="check-pictures")
        with gr.Column(scale=3, min_width=320):
            preset = gr.Dropdown(
                list(PRESETS),
                value=next(iter(PRESETS)),
                label="preset",
                info="What to begin with; every value can be changed afterwards.",
                elem_id="preset",
                allow_custom_value=True,
            )
            for name in FIRST:
                fields[name] = _field(OPTIONS[name])
            with gr.Accordion("Method, factors and learning rate", open=False) as method:
                for name in METHOD:
                    fields[name] = _field(OPTIONS[name])
            folded.append((method, set(METHOD)))
            with gr.Accordion("All settings", open=False) as every:
                for title, options in groups_of(TrainSettings).values():
                    rest = [o for o in options if o.name in OPTIONS and o.name not in fields]
                    if rest:
                        with gr.Accordion(title, open=False) as group:
                            for option in rest:
                                fields[option.name] = _field(option)
                        folded.append((group, {option.name for option in rest}))
            folded.append((every, set(NAMES) - {*FIRST, *METHOD}))
            with gr.Accordion("run.yaml", open=False):
                text = gr.Textbox(  # in gr.Code the Tab key writes: a keyboard could not leave it
                    label="run.yaml", info="The file that the run begins with.", lines=12,
                    max_lines=24, elem_id="yaml", elem_classes="dk-code",
                )  # fmt: skip
                apply = gr.Button("Take over into the form", size="sm", elem_id="apply-yaml")
                wrong = gr.HTML(elem_id="yaml-said")
        with gr.Column(scale=2, min_width=280, elem_classes="dk-beside"):
            problems = gr.HTML(elem_id="problems")
            plan = gr.HTML(elem_id="plan")
            begin = gr.Button("Start training", variant="primary", elem_id="start")
            done = gr.HTML(elem_id="started")
    sheet = gr.HTML(elem_id="checked")
    ordered = [fields[name] for name in NAMES]
    usual = gr.JSON([{}, {}], visible="hidden", elem_id="usual")
    mistaken, misfit, applied = gr.State(()), gr.State(()), gr.State(next(iter(PRESETS)))
    yaml = answer()
    accordions = [each for each, _ in folded]
    shown = [yaml, problems, mistaken, *ordered, *accordions]

    def by_name(typed: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(NAMES, typed, strict=True))

    def check(before: Sequence[str], *typed: Any) -> list[Any]:
        now, *found = train_form.checked(workspace, by_name(typed), before)
        return [{} if now is None else {"yaml": now}, *found, *unfold(found[1], before)]

    def unfold(mistakes: Sequence[str], before: Sequence[str]) -> list[Any]:
        new = set(mistakes) - set(before)
        return [gr.Accordion(open=True) if names & new else gr.skip() for _, names in folded]

    def plan_of(before: Sequence[str], *typed: Any) -> list[Any]:
        found = train_form.planned(workspace, by_name(typed), before)
        return [*found, *unfold(found[1], before)]

    # One event checks and one estimates, whatever changed the form: of several, an earlier one
    # could answer last, for a form that was half filled in.
    changed = gr.Number(0, visible="hidden")
    checked = changed.change(check, [mistaken, *ordered], shown, **QUIET)
    fill(checked, yaml, ["yaml"], [text], "apply-yaml", awaited=False)
    planned = [plan, misfit, *ordered, *accordions]
    checked.then(plan_of, [misfit, *ordered], planned, **QUIET)

    def then_check(event: Any) -> None:
        event.then(None, changed, changed, js=NEXT, **QUIET)

    def then_fill(event: Any, place: Any, asked_by: str, names: Sequence[str] = NAMES) -> None:
        then_check(fill(event, place, names, [fields[name] for name in names], asked_by))

    edited = [fields[name].input for name in NAMES if name not in LEADING]
    gr.on(edited, None, changed, changed, js=NEXT, **QUIET)
    begun, taken, named, next_one, opened = (answer() for _ in range(5))
    chosen = preset.input(
        train_form.with_preset, [preset, applied, usual, *ordered], [applied, usual, begun],
        js=ask("preset"), **QUIET,
    )  # fmt: skip
    then_fill(chosen, begun, "preset")
    taken_over = apply.click(
        train_form.from_yaml, text, [wrong, usual, taken], js=ask("apply-yaml"), **QUIET
    )
    then_fill(taken_over, taken, "apply-yaml")
    leading = [fields[name] for name in LEADING]
    filled = [fields[name] for name in FILLED]
    followed = gr.on(
        [field.input for field in leading],
        lambda *given: train_form.followed(workspace, *given),
        [usual, fields["output_dir"], *leading], usual, js=ask("followed"), **QUIET,
    )  # fmt: skip
    then_check(followed.then(None, [usual, *filled], filled, js=FILL, **QUIET))
    about = subject.change(
        lambda name, method: train_form.for_subject(workspace, name, method),
        [subject, fields["adapter_type"]], named, js=ask("subject"), **QUIET,
    )  # fmt: skip
    then_fill(about, named, "subject", BY_SUBJECT)

    def first() -> tuple[Any, ...]:  # with the subjects that there are by now
        usual, *values = train_form.first_values(workspace)
        now = {"subject": first_subject(workspace), **dict(zip(NAMES, values, strict=True))}
        return usual, now, gr.Dropdown(choices=subjects(workspace))

    def load(page: gr.Blocks) -> None:
        loaded = page.load(first, None, [usual, opened, subject], js=ask(), **QUIET)
        then_check(fill(loaded, opened, ["subject", *NAMES], [subject, *ordered]))

    def look_at(*typed: Any) -> str:
        return train_form.looked(workspace, by_name(typed))

    when_filled(look.click).then(
        look_at, ordered, sheet, scroll_to_output=True, show_progress="minimal"
    )

    def begin_run(*typed: Any) -> tuple[Any, ...]:
        note, following, name = train_form.started(workspace, by_name(typed))
        return note, following, name, gr.Tabs(selected="watch") if name else gr.skip()

    started = when_filled(begin.click).then(begin_run, ordered, [done, next_one, running, tabs])
    then_fill(started.then(None, js=FOCUS), next_one, "start", ["output_dir"])
    return TrainTab(usual, then_fill, load)
