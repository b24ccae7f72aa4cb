"""The pictures of a subject and their captions, on the tab Train."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..common.errors import UserError
from ..common.files import slug
from ..common.json_files import parse_json
from .filling import QUIET, answer, ask, fill
from .places import Workspace, first_subject, subjects, unreadable
from .uploads import add_pictures, captions, masks, save_captions
from .views import say, view

# page.js keeps what is typed into captions until it is saved, and a while longer: fields that are
# laid out meanwhile may have been read before.
KEPT = """(saved) => {
  for (const [name, text] of Object.entries(saved))
    setTimeout(() => {
      if (window.dkDrafts[name] === text) delete window.dkDrafts[name];
    }, 10000);
}"""


def build(workspace: Workspace) -> Any:
    """Lay out subject, upload and captions; the field of the subject."""
    subject = gr.Dropdown(
        subjects(workspace),
        value=first_subject(workspace),
        allow_custom_value=True,
        label="subject",
        info="A folder in data/. Type a new name to make one.",
        elem_id="subject",
    )
    upload = gr.File(
        file_count="multiple",
        file_types=["image"],
        label="Drop pictures of the subject here",
        height=170,
        elem_id="upload",
    )
    refused = gr.HTML(elem_id="refused")
    changed = gr.State(0)

    def add(name: str | None, files: list[str] | None) -> tuple[Any, ...]:
        if not files:
            return gr.skip(), {}, gr.skip(), gr.skip(), gr.skip()
        # Those of a drop before this one, still in the field, are copied and removed by now.
        uploaded = [path for path in map(Path, files) if path.is_file()]
        try:
            lines, renamed = add_pictures(workspace, name or "", uploaded)
            note = " ".join([*_copied(len(uploaded) - len(lines), name or ""), *renamed])
        except UserError as error:
            lines, note = [str(error)], ""
        finally:
            for file in uploaded:  # Gradio's own copies, which nobody needs any more
                with contextlib.suppress(OSError):
                    file.unlink()
        there = subjects(workspace)
        known = name if name in there else slug(name or "")
        now = {"subject": known} if known in there else {}
        return gr.Dropdown(choices=there), now, None, say(mistakes=lines, note=note), time.time_ns()

    named = answer()
    added = upload.upload(
        add, [subject, upload], [subject, named, upload, refused, changed],
        js=ask("upload"),
        trigger_mode="multiple",  # pictures that are dropped before the others are copied
    )  # fmt: skip
    fill(added, named, ["subject"], [subject], "upload")

    @gr.render(inputs=[subject, changed])
    def show(name: str | None, _when: int) -> None:
        try:
            if wrong := unreadable(workspace, "data"):
                raise UserError(wrong)
            rows = captions(workspace, name) if name else []
            beside = masks(workspace, name) if name else {}
        except UserError as error:
            gr.HTML(say(mistakes=[str(error)]))
            return
        if not rows:
            gr.HTML(say(note="No pictures yet. Three to six are enough."))
            return
        for file, text in rows:
            with gr.Row(elem_classes="dk-caption"):
                files = filter(None, [file, beside.get(Path(file).stem)])
                paths = [f"data/{name}/input/{each}" for each in files]
                gr.HTML(view("picture", names=paths), min_width=72, scale=1)
                gr.Textbox(
                    text,
                    label=f"caption of {file}",
                    placeholder="empty: the prompt",
                    interactive=True,  # else one with a text is not, until the form is filled
                    scale=4,
                    min_width=140,
                )

    # Not an event of the fields: those would be lost when more pictures lay them out anew.
    typed = gr.Textbox("", visible="hidden", elem_id="captions")
    said, saved = gr.HTML(), answer()
    typed.blur(
        lambda text: _save(workspace, parse_json(text, dict[str, str])),
        typed,
        [said, saved],
        **QUIET,
    ).then(None, saved, js=KEPT)
    subject.change(None, None, said, js="() => ''")
    return subject


def _copied(number: int, name: str) -> list[str]:
    words = "1 picture has" if number == 1 else f"{number} pictures have"
    return [f"{words} been added to {name}."] if number else []


def _save(workspace: Workspace, typed: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Save captions by their pictures, from the workspace on; what to say, and the saved ones."""
    try:
        for subject, names in itertools.groupby(typed, lambda name: Path(name).parts[1]):
            save_captions(workspace, subject, [(Path(name).name, typed[name]) for name in names])
    except UserError as error:
        return say(mistakes=[str(error)]), {}
    return say(note="Captions saved."), dict(typed)
