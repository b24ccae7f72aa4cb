"""What is wrong with a JSON file is said in one line that no terminal obeys."""

from __future__ import annotations

import pytest

from diffusekrona.common.json_files import parse_json


def test_a_key_of_the_file_is_escaped_in_the_error() -> None:
    text = '{"a": {"\\u001b[2J\\n": "x"}}'
    with pytest.raises(ValueError, match=r"a\.\\x1b\[2J: ") as caught:
        parse_json(text, dict[str, dict[str, int]])
    assert str(caught.value).isprintable()
