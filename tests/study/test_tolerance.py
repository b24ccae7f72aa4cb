"""Which learning rates come near a method's own best."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diffusekrona.study.cell import Scoring
from diffusekrona.study.grid import Arm, Study, axis
from diffusekrona.study.results import Point, Results
from diffusekrona.study.tolerance import tolerance_table, tolerances

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def results(scores: dict[str, tuple[float, ...]]) -> Results:
    rates = axis("learning rate", "learning_rate", RATES)
    points = []
    for number, value in enumerate(rates.values):
        point = Point("KronA", (value.label,), None, 10, [("dog", 0), ("cat", 0)])
        for metric, means in scores.items():
            point.scores[metric] = [np.full((2, 2), means[number])] * 2
        points.append(point)
    study = Study("s", "S", (Arm("KronA", {}, (rates,)),))
    return Results(study, points, [], ["a", "b"], Scoring("base", "pocket"))


def test_rates_next_to_the_best_within_a_tenth() -> None:
    scores = {"clip_i": (0.2, 0.95, 1.0, 0.89), "clip_t": (1.0, 0.91, 0.5, 0.95)}
    (found,) = tolerances(results(scores))
    low, high = 10 ** (-3 - 0.05 / 0.75), 10 ** (-2 + 0.1 / 0.11)  # where the line crosses 0.9
    assert found.near["clip_i"] == pytest.approx((low, high))
    end = 10 ** (-3 + 0.01 / 0.41)
    assert found.near["clip_t"] == pytest.approx((1e-4, end))  # 0.95 lies beyond one not near
    assert found.near["all"] == pytest.approx((low, end))
    head, (row,) = tolerance_table([found])
    assert head == ["", "rates tried", "CLIP-I", "CLIP-T", "all"]
    assert row[2:] == [
        "8.6e-4 to 0.081 (× 95)", "≤ 1e-4 to 1.1e-3 (× 11)", "8.6e-4 to 1.1e-3 (× 1.2)",
    ]  # fmt: skip


def test_rates_after_the_same_number_of_steps_are_compared() -> None:
    early = results({"clip_i": (0.2, 0.3, 0.4, 1.0)})
    late = results({"clip_i": (0.2, 1.0, 0.4, 0.3)})
    for step, found in ((100, early), (300, late)):
        for point in found.points:
            point.step = step
    both = dataclasses.replace(early, points=[*early.points, *late.points])
    early_range, late_range = (one.near["clip_i"] for one in tolerances(both))
    assert [one.label for one in tolerances(both)] == ["KronA 100 steps", "KronA 300 steps"]
    assert early_range == pytest.approx((10 ** (-1 - 0.1 / 0.6), 1e-1))
    assert late_range == pytest.approx((10 ** (-3 - 0.1 / 0.8), 10 ** (-3 + 0.1 / 0.6)))


def test_a_subject_counts_once_however_many_of_its_runs_have_finished() -> None:
    point = Point("KronA", (), None, 10, [("dog", 0), ("dog", 1), ("dog", 2), ("cat", 0)])
    point.scores["clip_i"] = [np.full((2, 2), value) for value in (0.0, 0.0, 0.0, 1.0)]
    assert point.mean("clip_i") == point.summary("clip_i").mean == 0.5


def test_no_rate_may_be_near_in_everything() -> None:
    scores = {"clip_i": (0.2, 0.3, 1.0, 0.89), "clip_t": (1.0, 0.5, 0.5, 0.4)}
    (found,) = tolerances(results(scores))
    assert found.near["all"] is None


def test_nothing_without_a_sweep_of_rates() -> None:
    point = Point("KronA", (), None, 10, [("dog", 0)])
    study = Study("s", "S", (Arm("KronA"),))
    assert tolerances(Results(study, [point], [], ["a"], Scoring("base", "pocket"))) == []
