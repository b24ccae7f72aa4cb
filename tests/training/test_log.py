"""What a run reports: memory by phase, and records that JSON can hold."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from diffusekrona.training.log import _finite
from diffusekrona.training.lr_schedule import stepped
from diffusekrona.training.peaks import Peaks


def test_a_record_holds_no_nan() -> None:
    record = _finite({"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], 3: "x"})
    assert record == {"a": None, "b": [1.5, None, {"c": None}], "3": "x"}
    json.dumps(record, allow_nan=False)


def test_peaks_are_kept_by_phase() -> None:
    peaks = Peaks(torch.device("cpu"))
    peaks.end("data")
    peaks.end("training")
    assert list(peaks.in_words()) == ["data", "training"]
    assert peaks.total().endswith("GiB of memory")


@pytest.mark.parametrize("overflow", [True, False])
def test_an_overflow_is_noticed_by_the_loss_scale(overflow: bool) -> None:
    """With fused AdamW accelerate reports no skipped step (torch's kernel skips it)."""
    scale = [1024.0]

    def step() -> None:
        scale[0] = 512.0 if overflow else scale[0]

    accelerator = SimpleNamespace(
        scaler=SimpleNamespace(get_scale=lambda: scale[0]),
        sync_gradients=True,
        optimizer_step_was_skipped=False,
    )
    assert stepped(accelerator, SimpleNamespace(step=step)) is not overflow
