"""The page: its tabs, its look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from . import draw_tab, tools_tab, train_form, train_tab, watch_tab
from .fields import renew
from .places import Workspace

CSS = Path(__file__).with_name("page.css")


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page, ready to be mounted."""
    with gr.Blocks(title="DiffuseKronA", analytics_enabled=False, fill_width=True) as page:
        gr.HTML("<h1 class='dk-title'>DiffuseKronA</h1>")
        running = gr.State(None)
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                train = train_tab.build(workspace, running)
            with gr.Tab("Watch", id="watch"):
                watch_tab.build(workspace, train, running, tabs)
            with gr.Tab("Draw", id="draw"):
                renewed = draw_tab.build(workspace)
            with gr.Tab("Reports", id="reports"):
                reports = tools_tab.build(workspace)
        renewed += reports.renewed
        outputs = [field for field, _ in renewed]
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        gr.on(
            [tabs.select, reports.tabs.select], lambda: renew(workspace, renewed), None, outputs,
            **quiet,
        )  # fmt: skip
        for ran in reports.runs:
            ran.then(lambda: renew(workspace, renewed), None, outputs, **quiet)
        opened = page.load(lambda: train_form.first_values(workspace), None, train.shown)
        train.refresh(opened)
    return page


def theme() -> gr.themes.Base:
    """Gradio's plain theme with the system's own fonts: nothing is loaded from elsewhere."""
    fonts = ("system-ui", "sans-serif")
    return gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace"))
