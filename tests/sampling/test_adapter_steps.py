"""In which denoising steps adapters take part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusekrona.sampling import pipeline as sampling


@pytest.mark.parametrize(
    ("end", "active"), [(0.1, 1), (0.3, 2), (0.5, 3), (1.0, 3)]
)  # of three steps, which begin at 0, 0.2 and 0.4 of the whole
def test_the_part_is_one_of_all_steps_where_a_refiner_has_the_last(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch, end: float, active: int
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(sampling, "enable_adapters", lambda _model, on: switched.append(on))
    pipeline = sampling.load_pipeline(str(tiny_sdxl))

    def finish(latents: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return latents

    pictures = sampling.iter_pictures(
        pipeline,
        sampling.encode(pipeline, ["a dog"]),
        [(0, 0)],
        steps=5,
        guidance=2.0,
        progress=False,
        finish=finish,
        handover=0.6,
        adapter_steps=(0.0, end),
    )
    assert len(list(pictures)) == 1
    before_each, back_on = switched[:3], switched[-1]  # the last callback is after the last step
    assert before_each == [step < active for step in range(3)] and back_on
