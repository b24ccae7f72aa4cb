"""The page: its tabs, its look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base, Default

from . import draw_tab, tools_tab, train_tab, watch_tab
from .fields import renew
from .filling import QUIET, answer, ask, fill
from .places import Workspace
from .views import view

CSS = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page, ready to be mounted."""
    with gr.Blocks(title="DiffuseKronA", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(view("title"))
        running = gr.State(None)
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                train = train_tab.build(workspace, running, tabs)
            with gr.Tab("Watch", id="watch", elem_id="tab-watch"):
                use, watched, timer = watch_tab.build(workspace, train, running, tabs)
            with gr.Tab("Draw", id="draw"):
                draw = draw_tab.build(workspace, tabs)
            with gr.Tab("Reports", id="reports"):
                reports = tools_tab.build(workspace)
        renewed = [*draw.renewed, *reports.renewed]
        outputs = [field for field, _ in renewed]
        gr.on(
            [tabs.select, reports.tabs.select], lambda: renew(workspace, renewed), None, outputs,
            **QUIET,
        )  # fmt: skip
        for ran in reports.runs:
            ran.then(lambda: renew(workspace, renewed), None, outputs, **QUIET)

        def draw_with(names: list[str] | None) -> tuple[Any, ...]:
            adapter = watch_tab.adapter_of(workspace, names)
            now = {"adapter": adapter}
            return gr.Tabs(selected="draw"), gr.Timer(active=False), now, "chosen"

        to_draw = answer()
        used = use.click(
            draw_with, watched, [tabs, timer, to_draw, draw.filled], js=ask("use"), **QUIET
        )
        filled = fill(used, to_draw, ["adapter"], [draw.adapter], "use")
        filled.then(None, js=train_tab.FOCUS)
        filled.then(lambda: renew(workspace, renewed), None, outputs, **QUIET)
        train.load(page)
        page.load(None, js=SCRIPT.read_text(encoding="utf-8"))
    return page


def theme() -> Base:
    """Gradio's plain theme with the system's own fonts, as nothing is loaded from elsewhere, and
    with letters that stand out from what is behind them (a contrast of 4.5 or more)."""
    fonts = ("system-ui", "sans-serif")
    plain = Default(font=fonts, font_mono=("ui-monospace", "monospace"))
    return plain.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )
