"""Answers of the server that fill fields.

An answer takes a while, in which a user may type. What the user did last counts: a field that was
edited after the control that asked for the answer is left as it is. page.js notes when each was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
Answer = dict[str, Any]  # what fields are to hold, by name

_FILL = """(now, ...values) => {
  const names = %s, ids = %s, at = window.dkActed ?? {};
  return values.map((value, i) => names[i] in now && !((at[ids[i]] ?? -1) > (at[%s] ?? 0))
    ? now[names[i]] : value);
}"""


def answer() -> Any:
    """A hidden place for an answer."""
    return gr.JSON({}, visible="hidden")


def fill(
    event: Any, place: Any, names: Sequence[str], fields: Sequence[Any], asked_by: str = ""
) -> Any:
    """Fill the fields from the answer that `event` has put into `place`.

    Args:
        asked_by: id of the control that asked; "" for the page when it is opened.
    """
    ids = json.dumps([field.elem_id for field in fields])
    script = _FILL % (json.dumps(list(names)), ids, json.dumps(asked_by))
    return event.then(None, [place, *fields], list(fields), js=script, **QUIET)
