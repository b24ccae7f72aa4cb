"""What is wrong with a YAML file is said in one line, with the place in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusekrona.common.errors import UserError
from diffusekrona.common.yaml_files import read_mapping


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [1\n", r"line 3, column 1: expected ',' or '\]'"),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        ("a: !run x\n", "line 1, column 4: could not determine a constructor for the tag '!run'"),
        ("a: 1\na: 2\n", "'a' is there twice"),
        ("b: &x 1\na: *x\n", "aliases"),
        ("- 1\n", "does not hold settings"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_mapping(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
