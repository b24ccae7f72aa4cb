"""Every built-in study can be tabled and drawn when its runs have ended."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from diffusekrona.study.builtin_studies import studies
from diffusekrona.study.cell import Scoring
from diffusekrona.study.charts import charts_of
from diffusekrona.study.grid import Study
from diffusekrona.study.results import Point, Results

STUDIES = studies(bundled_base=True)


def results_of(study: Study) -> Results:
    """Random scores for every point of a study, of two subjects."""
    points, rng = [], np.random.default_rng(0)
    for arm in study.arms:
        labels = itertools.product(*([v.label for v in axis.values] for axis in arm.axes))
        for own, step in itertools.product(labels, study.checkpoints or [None]):
            point = Point(arm.label, own, step, 10, [("dog", 0), ("cat", 0)], norms=[0.1, 0.2])
            point.scores = {name: [rng.random((2, 2))] * 2 for name in ("clip_i", "clip_t")}
            points.append(point)
    return Results(study, points, [], ["a", "b"], Scoring("base", "pocket"))


def test_a_chart_over_rates_and_checkpoints_names_both() -> None:
    study = dataclasses.replace(STUDIES["learning-rate"], checkpoints=(100, 300))
    charts = charts_of(results_of(study))
    axis = charts["scores"][0].axes[0]
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert len(set(ticks)) == len(ticks) == 2 * len(study.arms[0].axes[0].values)
    assert ticks[:2] == ["6e-4 · 100 steps", "6e-4 · 300 steps"]
    assert axis.get_xlabel() == "learning rate · training steps"
    names = {text.get_text() for text in charts["plane"][0].axes[0].texts}
    assert names and names <= set(ticks)
    steps = charts_of(results_of(STUDIES["iterations"]))["scores"][0].axes[0]
    assert steps.get_xlabel() == "training steps"
    assert steps.get_xticklabels()[0].get_text() == "50"


@pytest.mark.parametrize("name", STUDIES)
def test_its_charts_are_made(name: str) -> None:
    charts = charts_of(results_of(STUDIES[name]))
    two = [arm for arm in STUDIES[name].arms if len(arm.axes) == 2]
    assert len([key for key in charts if key.startswith("map_")]) == len(two)
    assert len(charts) > len(two)
