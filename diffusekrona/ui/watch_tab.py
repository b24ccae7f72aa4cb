"""The tab Watch: what runs are doing, and draw, save, stop, resume, clone. Only buttons that can do
something are shown."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError
from ..common.run_record import RUN_SETTINGS
from .estimate import duration
from .filling import QUIET, Answer, answer, ask, fill
from .jobs import draw_now, resume, save_now, stop
from .places import Workspace, inside, run_folders, unreadable
from .runs import LIVE, Run, log_tail, read_run
from .train_form import cloned
from .train_tab import FOCUS, TrainTab
from .views import curve, say, view

_MOST_RUNS = 50  # in the list
_MOST_PICTURES = 12  # of one run
_SECONDS = 2.0  # between two looks
_BUTTONS = {
    "use": "Draw with it", "draw-now": "Draw now", "save-now": "Save now",
    "stop": "Stop and save", "resume": "Resume", "clone": "Clone",
}  # fmt: skip

_ACTIONS = {  # what a button does with a run, and what is said then
    "draw-now": (draw_now, "Asked to draw: the pictures appear after this step."),
    "save-now": (save_now, "Asked to save a checkpoint after this step."),
    "stop": (stop, "Asked to stop: it saves a checkpoint after this step."),
    "resume": (resume, "Resumed from the newest checkpoint."),
}


def build(
    workspace: Workspace, train: TrainTab, running: gr.State, tabs: gr.Tabs
) -> tuple[Any, Any, Any]:
    """Lay the tab out and wire it; the button that draws with a run, the field of the chosen ones,
    and the timer that looks at them. Called inside of `gr.Blocks`.

    Args:
        running: the name of the run that was started last, which is shown first.
    """
    chosen = gr.Dropdown(
        [], multiselect=True, label="runs", info="Newest first; choose several to compare.",
        elem_id="runs", allow_custom_value=True,  # else what is typed is lost by the Tab key
    )  # fmt: skip
    with gr.Row():
        buttons = {
            name: gr.Button(words, elem_id=name, visible=False) for name, words in _BUTTONS.items()
        }
    said = gr.HTML(elem_id="watch-said")
    shown = gr.HTML(elem_id="watched")
    with gr.Accordion("Log of the first run", open=False):
        log = gr.Textbox(
            lines=12, max_lines=12, interactive=False, autoscroll=True, show_label=False,
            label="log", elem_id="log",
        )  # fmt: skip
    last = gr.State("")

    def look(names: Sequence[str] | None, before: str) -> tuple[Any, ...]:
        text, tail, useful = _watched(workspace, names or [])
        if (now := f"{useful}{text}{tail}") == before:
            return (gr.skip(),) * (3 + len(buttons))
        return text, tail, now, *(gr.Button(visible=name in useful) for name in _BUTTONS)

    def runs(names: Sequence[str] | None, newest: str | None) -> tuple[Any, Answer]:
        there = [workspace.relative(path) for path in run_folders(workspace)[:_MOST_RUNS]]
        kept = [text for text in names or [] if _named(text, there)]
        if newest in there and newest not in kept:
            kept = [newest, *kept][:2]
        wanted = kept or there[:1]
        return gr.Dropdown(choices=there), {} if wanted == names else {"runs": wanted}

    def clone(names: Sequence[str] | None) -> tuple[Any, ...]:
        found, _ = _chosen(workspace, names or [])
        if not found:
            return gr.skip(), gr.skip(), gr.skip(), {}
        folder = inside(workspace, Path(found[0]), ("outputs",))
        return gr.Tabs(selected="train"), gr.Timer(active=False), *cloned(workspace, folder)

    timer = gr.Timer(_SECONDS, active=False)

    def wake(event: gr.SelectData) -> Any:
        return gr.Timer(active=event.value == "Watch")  # on other tabs nobody looks

    tabs.select(wake, None, timer, **QUIET)
    looked = [shown, log, last, *buttons.values()]
    timer.tick(look, [chosen, last], looked, **QUIET)
    gr.on([tabs.select, chosen.change], look, [chosen, last], looked, **QUIET)
    for event, newest, asked_by in (
        (tabs.select, gr.State(None), "tab-watch-button"),
        (running.change, running, "start"),
    ):
        place = answer()
        fill(event(runs, [chosen, newest], [chosen, place], **QUIET), place, ["runs"], [chosen],
             asked_by)  # fmt: skip
    # A tab that is opened from elsewhere on the page says nothing of it.
    running.change(lambda name: gr.Timer(active=bool(name)), running, timer, **QUIET)
    for name in _ACTIONS:
        buttons[name].click(functools.partial(act, workspace, name), chosen, said)
    copied = answer()
    opened = buttons["clone"].click(
        clone, chosen, [tabs, timer, train.usual, copied], js=ask("clone")
    )
    train.fill(opened.then(None, js=FOCUS), copied, "clone")
    return buttons["use"], chosen, timer


def act(workspace: Workspace, button: str, typed: Sequence[str] | None) -> str:
    """What the page says after a button was pressed for the chosen runs. It is for those that it
    can do something with; if it can with none, each says why."""
    action, words = _ACTIONS[button]
    names, _ = _chosen(workspace, typed or [])
    mistakes = [] if names else ["Choose a run first."]
    done = False
    try:
        folders = [inside(workspace, name, ("outputs",)) for name in names]
        useful = [f for f in folders if button in _useful(read_run(workspace, f))]
    except UserError as error:
        return say(mistakes=[str(error)])
    for folder in useful or folders:
        try:
            action(workspace, folder)
            done = True
        except UserError as error:
            mistakes.append(str(error))
    return say(mistakes=mistakes, note=words if done else "")


def adapter_of(workspace: Workspace, names: Sequence[str] | None) -> str:
    """The adapter of the first of the chosen runs that has one; "" if none has."""
    found, _ = _chosen(workspace, names or [])
    files = (inside(workspace, name, ("outputs",)) / ADAPTER_FILE for name in found)
    return next((workspace.relative(file) for file in files if os.path.isfile(file)), "")


def _chosen(workspace: Workspace, typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs meant by what is in the field, and a line on each text that means none.

    The field itself is left as typed: an answer written into it would take the place of what is
    typed meanwhile.
    """
    there = [workspace.relative(path) for path in run_folders(workspace)]
    found = dict.fromkeys(name for text in typed if (name := _named(text, there)))
    missing = [f"There is no run {text} in outputs/." for text in typed if not _named(text, there)]
    return list(found), missing


def _named(text: str, there: Sequence[str]) -> str | None:
    """The run of this name, else the newest with `text` in its name."""
    return text if text in there else next((name for name in there if text in name), None)


def _watched(workspace: Workspace, typed: Sequence[str]) -> tuple[str, str, set[str]]:
    """The runs as HTML, the first one's log, and the buttons that can do something with them."""
    if wrong := unreadable(workspace, "outputs"):
        return say(mistakes=[wrong]), "", set()
    names, missing = _chosen(workspace, typed)
    folders = []
    for name in names:
        try:
            folders.append(inside(workspace, name, ("outputs",)))
        except UserError:
            continue
    runs = [read_run(workspace, folder) for folder in folders if os.path.isdir(folder)]
    text = say(mistakes=missing)
    if runs or not run_folders(workspace):
        text += view("watch", runs=runs, curve=curve, duration=duration, most=_MOST_PICTURES)
    elif not typed:
        text += say(note="Choose a run.")
    useful = {name for run in runs for name in _useful(run)}
    return text, log_tail(folders[0]) if folders else "", useful


def _useful(run: Run) -> set[str]:
    """The buttons that can do something with a run."""
    if run.state in LIVE:
        useful = {"stop", "draw-now", "save-now"} if run.state == "running" else {"stop"}
    else:
        useful = {"use"} if os.path.isfile(run.folder / ADAPTER_FILE) else set()
        useful |= set() if run.state == "finished" else {"resume"}
    return useful | {"clone"} if os.path.isfile(run.folder / RUN_SETTINGS) else useful - {"resume"}
