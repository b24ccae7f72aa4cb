"""Prompts in other programs' syntax are named, plain English is not."""

from __future__ import annotations

import pytest

from diffusekrona.common.prompts import literal_syntax


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a (red:1.3) dog", "(red:1.3)"),
        ("a [red:0.5] dog", "[red:0.5]"),
        ("a dog BREAK a cat", "BREAK"),
        ("a ((shiny)) dog", "((shiny))"),
        ("a dog <lora:mine:0.8>", "<lora:mine:0.8>"),
        ("a red++ dog", "red++"),
        ("a (red shiny)1.3 dog", "(red shiny)1.3"),
        ("a [cat|dog] in snow", "[cat|dog]"),
        ("a dog, embedding:easynegative", "embedding:easynegative"),
    ],
)
def test_weights_and_separators_are_named(prompt: str, named: str) -> None:
    assert repr(named) in literal_syntax(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "a sks dog",
        "a dog (my own), at 10:30",
        "a dog (1998) 12 years old",
        "ratio 1:1.5",
        "BREAKFAST of a dog",
        "C++",
        "",
        "(" * 9999,
    ],
)
def test_plain_prompts_are_not(prompt: str) -> None:
    assert literal_syntax(prompt) is None
