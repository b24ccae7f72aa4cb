"""The tab Train: what is wired to what."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
from diffusekrona.ui.page import build
from diffusekrona.ui.places import Workspace


@pytest.mark.parametrize("place", ["plan", "problems"])
def test_one_event_answers(place: str, tmp_path: Path) -> None:
    """Of two events, the earlier could answer last, for a form that was half filled in."""
    page = build(Workspace(tmp_path))
    [shown] = [block for block in page.blocks.values() if block.elem_id == place]
    assert len([event for event in page.fns.values() if shown in event.outputs]) == 1
