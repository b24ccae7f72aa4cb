"""Whether a model is the same as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusekrona.bases import fingerprint
from diffusekrona.common.errors import UserError


def test_a_folder_that_can_be_no_model_is_not_read(tmp_path: Path, monkeypatch) -> None:
    """`--clip /` would read the beginning of every file on the disk."""
    for number in range(4):
        (tmp_path / f"{number}.safetensors").write_text("weights")
    assert fingerprint.fingerprint_of(str(tmp_path)) is not None
    monkeypatch.setattr(fingerprint, "_MOST_FILES", 3)
    with pytest.raises(UserError, match="give the folder of one model"):
        fingerprint.fingerprint_of(str(tmp_path))
