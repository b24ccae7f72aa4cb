"""The tab Reports: choose, evaluate, inspect, convert; every page and model card in outputs/."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..common.errors import UserError
from ..common.settings import options_of
from ..formats.targets import TARGETS
from .fields import Renewed, component_for
from .filling import QUIET
from .form import label_of, read_form
from .places import Workspace, served
from .runs import log_tail
from .tools import TOOLS, Tool, reports, start, stop, stopped
from .views import say, view

_PAUSE = 0.5  # seconds between two looks at a process


@dataclass(frozen=True)
class ToolsTab:
    """What the page uses of this one: fields that are chosen from what is there, and the events
    after which more may be."""

    tabs: gr.Tabs
    renewed: Renewed
    runs: list[Any]


def build(workspace: Workspace) -> ToolsTab:
    """Lay the tab out and wire it. Called inside of `gr.Blocks`."""
    renewed: Renewed = []
    runs: list[Any] = []
    with gr.Tabs() as tabs:
        for tool in TOOLS:
            with gr.Tab(tool.name.capitalize(), id=tool.name):
                fields, run = _tool(workspace, tool)
                renewed += [(fields[name], found) for name, found in tool.choices.items()]
                runs.append(run)
        with gr.Tab("All reports", id="all-reports"):
            chosen = gr.Dropdown(
                [], label="report", info="Pages and model cards in outputs/, newest first.",
                elem_id="report", allow_custom_value=True,
            )  # fmt: skip
            shown = gr.HTML(elem_id="report-shown")
            chosen.change(
                lambda name: report_view(workspace, name), chosen, shown, trigger_mode="always_last"
            )
    return ToolsTab(tabs, [*renewed, (chosen, reports)], runs)


def _tool(workspace: Workspace, tool: Tool) -> tuple[dict[str, Any], Any]:
    """Lay a program's form out; its fields, and the event that runs it."""
    options = {n: o for n, o in options_of(tool.settings).items() if n not in tool.left_out}
    rest = [name for name in options if name not in tool.first]
    fields: dict[str, Any] = {}
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            for name in tool.first:
                fields[name] = _field(workspace, tool, name)
            with gr.Accordion("More settings", open=False):
                for name in rest:
                    fields[name] = _field(workspace, tool, name)
            begin = gr.Button(tool.name.capitalize(), variant="primary", elem_id=f"run-{tool.name}")
            end = gr.Button("Stop", elem_id=f"stop-{tool.name}", visible=False)
        with gr.Column(scale=3, min_width=320):
            said = gr.HTML(elem_id=f"said-{tool.name}")
            shown = gr.HTML(elem_id=f"shown-{tool.name}")
    if tool.name == "convert":
        filled = gr.Textbox("", visible="hidden", elem_id="convert-filled")
        source, to, destination = fields["source"], fields["to"], fields["destination"]
        gr.on(
            [source.change, to.change], None, [source, to, destination, filled],
            [destination, filled], js=DESTINATION,
        )  # fmt: skip

    running = gr.Textbox("", visible="hidden")  # the folder of the report that is being made
    end.click(lambda folder: stop(workspace, folder), running, None, **QUIET)

    def run(*typed: Any) -> Iterator[tuple[Any, ...]]:
        values = dict(zip(fields, typed, strict=True))
        for said_now, shown_now, folder in _run(workspace, tool, values):
            yield said_now, shown_now, folder, gr.Button(visible=bool(folder))

    outputs = [said, shown, running, end]
    return fields, begin.click(run, list(fields.values()), outputs, show_progress="minimal")


def _field(workspace: Workspace, tool: Tool, name: str) -> Any:
    option = options_of(tool.settings)[name]
    if name not in tool.choices:
        return component_for(option, tool.name)
    look = {"choices": tool.choices[name](workspace), "multiselect": option.many}
    look |= {"value": [] if option.many else None}
    return component_for(option, tool.name, **look)


FOLDERS = [target.name for target in TARGETS.values() if target.is_folder]
# Where a converted adapter goes, named after its source and the format, unless another place was
# typed. In the browser: an answer of the server would replace what is typed meanwhile.
DESTINATION = f"""(source, to, destination, filled) => {{
  const whole = (source || "").replace(/^outputs[/]/, "").replaceAll("/", "-");
  const name = whole.replace(/(-?adapter)?[.]safetensors$/, "") + (to ? "-" + to : "");
  const end = {json.dumps(FOLDERS)}.includes(to) ? "" : ".safetensors";
  const next = source ? `outputs/converted/${{name}}${{end}}` : "";
  return [destination === filled ? next : destination, next];
}}"""


def _run(workspace: Workspace, tool: Tool, typed: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """The program's output and the folder of its report while it runs, then what it made."""
    typed = {n: "\n".join(v) if isinstance(v, list) else v for n, v in typed.items()}
    values, mistakes = read_form(tool.settings, typed)
    options = options_of(tool.settings)
    mistakes = {n: what for n, what in mistakes.items() if n in typed}
    try:
        if mistakes:
            words = (f"{label_of(options[n])} {what}" for n, what in mistakes.items())
            raise UserError("; ".join(words))
        folder, process, command = start(workspace, tool, values)
    except UserError as error:
        yield say(mistakes=[str(error)]), gr.skip(), ""
        return
    words, name = shlex.join(command), workspace.relative(folder)
    while process.poll() is None:
        log = log_tail(folder)
        now = view("output", command=words, log=log, running=True, above_page=False)
        yield now, "", name
        time.sleep(_PAUSE)
    if not folder.is_dir():
        gone = f"{name} is gone, and what the program wrote there with it."
        yield say(mistakes=[gone]), "", ""
        return
    run = workspace.root / values.get("run", folder)
    made = _files(workspace, str(values["destination"])) if "destination" in values else []
    made += [workspace.relative(path) for path in run.glob("best.safetensors")]
    found = {*folder.glob("*.html"), *run.glob("choice*.html"), *run.glob("choice/*.html")}
    pages = [workspace.relative(path) for path in sorted(found)]
    files = [name for name in made if served(workspace, name)]
    worked = process.returncode == 0
    log = f"{log_tail(folder)}\n\nStopped." if stopped(process) else log_tail(folder)
    above_page = worked and bool(pages)  # else the last lines matter most
    done = view("output", command=words, log=log, running=False, above_page=above_page)
    yield done, view("report", pages=pages, files=files, text="") if worked else "", ""


def _files(workspace: Workspace, name: str) -> list[str]:
    """The file that was written, or those in the folder."""
    path = workspace.root / name
    if not path.is_dir():
        return [name]
    return sorted(workspace.relative(each) for each in path.rglob("*.*"))


def report_view(workspace: Workspace, name: str | None) -> str:
    """A page in a frame, or a model card as text."""
    path = served(workspace, name or "")
    if path is None:
        return say(mistakes=["There is no such report."])
    if path.suffix == ".html":
        return view("report", pages=[name], files=[], text="")
    beside = [workspace.relative(p) for p in sorted(path.parent.glob("*.safetensors"))]
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return say(mistakes=[f"{name} cannot be read: {error.strerror}."])
    return view("report", pages=[], files=[name, *beside], text=text)
