"""A form's fields as Gradio's components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any

import gradio as gr

from ..common.settings import Option
from .form import field_value, help_of, label_of
from .places import Workspace

Choices = Callable[[Workspace], list[str]]
Renewed = list[tuple[Any, Choices]]  # fields that are chosen from what is in the workspace


def renew(workspace: Workspace, fields: Renewed) -> list[Any]:
    """Updates of the fields with what there is to choose from now; their values stay."""
    found = {choices: choices(workspace) for choices in {choices for _, choices in fields}}
    return [gr.Dropdown(choices=found[choices]) for _, choices in fields]


def component_for(option: Option, prefix: str = "setting", **look: Any) -> Any:
    """The field of a setting, empty or with its default. `look` replaces what follows from it.

    A field with choices takes other text too: without that, Gradio empties it when it is left by
    the Tab key, or when the choices arrive later than the text. `read_field` says what is wrong.
    """
    given: dict[str, Any] = {"label": label_of(option), "info": help_of(option)}
    given |= {"elem_id": f"{prefix}-{option.name}", **look}
    custom: dict[str, Any] = {"allow_custom_value": True}
    if "choices" in given:
        return gr.Dropdown(**{**custom, **given})
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
        return gr.Dropdown(choices, value=value, **{**custom, **given})
    return gr.Textbox(value, lines=2 if option.many else 1, max_lines=6, **given)
