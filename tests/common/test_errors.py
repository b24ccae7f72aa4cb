"""Words of errors."""

from __future__ import annotations

from diffusekrona.common.errors import reason_of


def test_the_reason_is_the_first_line_or_the_type() -> None:
    assert reason_of(ValueError("\nno such file\nand more")) == "no such file"
    assert reason_of(ValueError(" ")) == "ValueError"
