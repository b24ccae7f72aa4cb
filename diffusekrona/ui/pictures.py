"""The pictures of a subject and their captions, on the tab Train."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import gradio as gr

from ..common.errors import UserError
from ..common.files import slug
from .filling import answer, fill
from .places import Workspace, subjects, unreadable
from .uploads import add_pictures, captions, masks, save_captions
from .views import say, view


def build(workspace: Workspace) -> Any:
    """Lay out subject, upload and captions; the field of the subject."""
    names = subjects(workspace)
    subject = gr.Dropdown(
        names,
        value=names[0] if names else None,
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
            lines = add_pictures(workspace, name or "", uploaded)
        except UserError as error:
            lines = [str(error)]
        finally:
            for file in uploaded:  # Gradio's own copies, which nobody needs any more
                with contextlib.suppress(OSError):
                    file.unlink()
        there = subjects(workspace)
        known = name if name in there else slug(name or "")
        now = {"subject": known} if known in there else {}
        return gr.Dropdown(choices=there), now, None, say(mistakes=lines), time.time_ns()

    named = answer()
    added = upload.upload(
        add, [subject, upload], [subject, named, upload, refused, changed],
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
        boxes = []
        there = dict(rows)
        for file, text in rows:
            with gr.Row(elem_classes="dk-caption"):
                files = filter(None, [file, beside.get(Path(file).stem)])
                paths = [f"data/{name}/input/{each}" for each in files]
                gr.HTML(view("picture", names=paths), min_width=72, scale=1)
                box = gr.Textbox(
                    text,
                    label=f"caption of {file}",
                    placeholder="empty: the prompt",
                    interactive=True,  # else one with a text is not, until the form is filled
                    scale=4,
                    min_width=140,
                )
                boxes.append(box)
        saved = gr.HTML()

        def save(*texts: str) -> str:
            now = dict(zip(there, texts, strict=True))
            # The others may have been edited elsewhere.
            edited = [(file, text) for file, text in now.items() if text != there[file]]
            try:
                save_captions(workspace, name or "", edited)
            except UserError as error:
                return say(mistakes=[str(error)])
            there.update(now)
            return say(note="Captions saved.")

        for box in boxes:
            gr.on([box.blur, box.submit], save, boxes, saved, show_progress="hidden")

    return subject
