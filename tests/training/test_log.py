"""What a run reports: memory by phase, and records that JSON can hold."""

from __future__ import annotations

import json
import math

import torch

from diffusekrona.training.log import _finite
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
