"""Answers of the server that fill fields.

An answer takes a while, in which a user may type. What the user did last counts: a field that was
edited after the control that asked for the answer is left as it is. page.js notes when each was.
And a button that is pressed meanwhile reads the form after the answer: a subject that was chosen
just before is the one that is trained.
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
  %s
  return values.map((value, i) => names[i] in now && !((at[ids[i]] ?? -1) > (at[%s] ?? 0))
    ? now[names[i]] : value);
}"""
_ASK = """(...given) => {
  const awaited = window.dkAwaited ??= {};
  awaited[%s] = (awaited[%s] || 0) + 1;
  return given;
}"""
# A field that is left by pressing the button asks a moment after it. An answer that never comes is
# not waited for without end.
_ALL_ANSWERED = """async () => {
  const pause = () => new Promise(done => setTimeout(done, 50)), end = performance.now() + 20000;
  do await pause();
  while (Object.values(window.dkAwaited ?? {}).some(n => n > 0) && performance.now() < end);
  window.dkAwaited = {};
  await pause();  // until the fields hold it
}"""


def answer() -> Any:
    """A hidden place for an answer."""
    return gr.JSON({}, visible="hidden")


def ask(asked_by: str = "") -> str:
    """The `js` of an event whose answer fills fields, for which `when_filled` waits."""
    return _ASK % ((json.dumps(asked_by),) * 2)


def answered(asked_by: str = "") -> str:
    """A statement of the script that fills the fields."""
    return f"(window.dkAwaited ?? {{}})[{json.dumps(asked_by)}]--;"


def when_filled(pressed: Any) -> Any:
    """A button's event, after the answers that were asked for have filled their fields."""
    return pressed(None, js=_ALL_ANSWERED)


def fill(
    event: Any,
    place: Any,
    names: Sequence[str],
    fields: Sequence[Any],
    asked_by: str = "",
    awaited: bool = True,
) -> Any:
    """Fill the fields from the answer that `event` has put into `place`.

    Args:
        asked_by: id of the control that asked; "" for the page when it is opened.
        awaited: it asked with `ask`, so that buttons wait for it.
    """
    ids = json.dumps([field.elem_id for field in fields])
    who = json.dumps(asked_by)
    script = _FILL % (json.dumps(list(names)), ids, answered(asked_by) if awaited else "", who)
    return event.then(None, [place, *fields], list(fields), js=script, **QUIET)
