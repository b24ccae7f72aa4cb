"""A form's fields as Gradio's components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

import gradio as gr

from ..common.settings import Option
from .form import field_value, help_of, label_of


def component_for(option: Option, prefix: str = "setting", **look: Any) -> Any:
    """The field of a setting, empty or with its default. `look` replaces what follows from it."""
    given: dict[str, Any] = {"label": label_of(option), "info": help_of(option)}
    given |= {"elem_id": f"{prefix}-{option.name}", **look}
    if "choices" in given:
        return gr.Dropdown(**given)
    value = field_value(option, option.default)
    if option.kind is bool:
        return gr.Checkbox(value, **given)
    if option.choices and not option.many:
        words = option.allowed if isinstance(option.allowed, Mapping) else {}
        choices = [
            (f"{name}: {words[name]}" if isinstance(words.get(name), str) else name, name)
            for name in option.choices
        ]
        if option.default in (None, MISSING):
            choices.insert(0, ("", ""))
        return gr.Dropdown(choices, value=value, **given)
    return gr.Textbox(value, lines=2 if option.many else 1, max_lines=6, **given)
