"""The tab Draw: adapters with weights, side by side with the base, and recipes back from PNGs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..bases.bundled import bundled_models
from . import draw_form
from .draw_form import FILLED, FIRST, MORE, NAMES, OPTIONS, ROWS, SWITCHES
from .drawing import stop
from .fields import Renewed, component_for
from .filling import QUIET, answer, answered, ask, fill, when_filled
from .places import Workspace, adapter_files, subjects
from .views import say, view


@dataclass(frozen=True)
class DrawTab:
    """What the page uses of this tab: the first adapter's field, what the page filled in there, and
    the fields whose choices are renewed."""

    adapter: Any
    filled: Any
    renewed: Renewed


def build(workspace: Workspace, tabs: gr.Tabs) -> DrawTab:
    """Lay the tab out and wire it. Called inside of `gr.Blocks`."""
    fields: dict[str, Any] = {}
    names: list[Any] = []
    weights: list[Any] = []
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            _adapter_row(workspace, 0, names, weights)
            for name in FIRST:
                fields[name] = _field(name)
            with gr.Accordion("More adapters", open=False) as mixed:
                for number in range(1, ROWS):
                    _adapter_row(workspace, number, names, weights)
            with gr.Accordion("Compare", open=False):
                base_too = gr.Checkbox(True, label="the base beside it", elem_id="base-too")
                grid = gr.Textbox(
                    "", label="weights", info="Of the first adapter, such as 0.5 0.8 1.",
                    elem_id="grid-weights",
                )  # fmt: skip
                checkpoints = gr.Checkbox(
                    False, label="checkpoints", info="All of the first adapter's run.",
                    elem_id="grid-checkpoints",
                )  # fmt: skip
                photos = gr.Dropdown(
                    _photos(workspace), value="", label="score against the photos of",
                    info="CLIP-I to the photos, CLIP-T to the prompt, under each picture.",
                    elem_id="score-photos", allow_custom_value=True,
                )  # fmt: skip
            with gr.Accordion("Parts of the adapters", open=False) as parts:
                switches = {kind: _switch(kind) for kind in SWITCHES}
            with gr.Accordion("More settings", open=False):
                for name in MORE:
                    fields[name] = _field(name)
            with gr.Accordion("Recipe of a picture", open=False):
                png = gr.File(
                    file_types=[".png"], label="Drop a picture drawn here", height=160,
                    elem_id="recipe",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                begin = gr.Button("Draw", variant="primary", elem_id="draw")
                end = gr.Button("Stop", elem_id="stop-drawing", visible=False)
            said = gr.HTML(elem_id="draw-said")
            result = gr.HTML(view("draw", columns=[], rows=[]), elem_id="drawn")
    ordered = [fields[name] for name in NAMES]
    compared = [base_too, grid, checkpoints, photos]
    inputs = [*names, *weights, *switches.values(), *compared, *ordered]

    def drawn(*given: Any) -> Iterator[tuple[Any, ...]]:
        for said_now, result_now in draw_form.drawn(workspace, given):
            yield said_now, result_now, gr.Button(visible=True)
        yield gr.skip(), gr.skip(), gr.Button(visible=False)

    drawing = when_filled(begin.click).then(
        drawn, inputs, [said, result, end], concurrency_limit=1, concurrency_id="draw",
        show_progress="minimal",
    )  # fmt: skip

    def stopped() -> tuple[Any, Any]:
        stop()
        return say(note="Stopped."), gr.Button(visible=False)

    end.click(stopped, None, [said, end], cancels=[drawing])
    known = gr.State(())

    def blocks_of(*given: Any) -> tuple[Any, Any]:
        return draw_form.new_blocks(workspace, *given)

    blocks = (blocks_of, [names[0], known], [known, switches["blocks"]])
    gr.on([names[0].change, parts.expand], *blocks, **QUIET)
    weighed = [gr.State("") for _ in range(ROWS)]  # the adapters that weights were filled for
    for number, (name, weight, filled_for) in enumerate(zip(names, weights, weighed, strict=True)):
        place, chooser = answer(), f"adapter-{number}"
        chosen = name.change(
            functools.partial(draw_form.weight_of, workspace, number),
            [name, filled_for], [filled_for, place], js=ask(chooser), **QUIET,
        )  # fmt: skip
        fill(chosen, place, [f"weight {number}"], [weight], chooser)
    recipe = answer()
    read = png.upload(
        lambda path: draw_form.restored(workspace, path), png,
        [said, mixed, *weighed, known, switches["blocks"], recipe], js=ask("recipe"), **QUIET,
    )  # fmt: skip
    restored = [*names, *weights, *switches.values(), *ordered]
    # The adapter may have been changed meanwhile, and then its blocks are others.
    fill(read, recipe, FILLED, restored, "recipe").then(*blocks, **QUIET)
    newest, filled = gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden")
    tabs.select(
        lambda: draw_form.newest_adapter(workspace), None, newest, js=ask("newest"), **QUIET
    ).then(None, [names[0], newest, filled], [names[0], filled], js=NEWEST)
    renewed = [*((name, _adapters) for name in names), (photos, _photos)]
    return DrawTab(names[0], filled, renewed)


# The newest adapter, unless another one was chosen, or is being typed.
NEWEST = f"""(chosen, newest, filled) => {{
  {answered("newest")}
  const typing = document.querySelector("#adapter-0")?.contains(document.activeElement);
  return typing || (chosen || "") !== filled ? [chosen, filled] : [newest, newest];
}}"""


def _adapters(workspace: Workspace) -> list[str]:
    return ["", *adapter_files(workspace)]


def _photos(workspace: Workspace) -> list[str]:
    return ["", *subjects(workspace)]


def _field(name: str) -> Any:
    option = OPTIONS[name]
    if name == "pretrained_model_name_or_path":
        choices = ["", *bundled_models()]
        return component_for(option, "draw", choices=choices, value="")
    return component_for(option, "draw")


def _adapter_row(workspace: Workspace, number: int, names: list[Any], weights: list[Any]) -> None:
    """An adapter and its weight, added to the lists."""
    names.append(_adapter_field(workspace, number))
    weights.append(
        gr.Slider(-0.5, 1.5, 1, step=0.05, label=f"weight {number + 1}", elem_id=f"weight-{number}")
    )


def _adapter_field(workspace: Workspace, number: int) -> Any:
    return gr.Dropdown(
        _adapters(workspace), value="", label=f"adapter {number + 1}",
        info="A file in outputs/: trained here, or a LoRA or LoKr of another program.",
        elem_id=f"adapter-{number}", allow_custom_value=True,
    )  # fmt: skip


def _switch(kind: str) -> Any:
    groups = SWITCHES[kind]
    label = f"{kind} of the UNet" if kind == "blocks" else kind  # Gradio translates "blocks"
    return gr.CheckboxGroup(groups, value=groups, label=label, elem_id=f"switch-{kind}")
