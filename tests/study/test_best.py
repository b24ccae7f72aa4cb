"""Each method at its best, chosen on other subjects."""

from __future__ import annotations

import numpy as np

from diffusekrona.study.best import best_of_arms, best_table
from diffusekrona.study.cell import Scoring
from diffusekrona.study.grid import Arm, Study, axis
from diffusekrona.study.results import Point, Results

SUBJECTS = ("dog", "cat", "car", "duck")


def point(arm: str, label: str, likeness: tuple[float, ...], obedience: float) -> Point:
    runs = [(subject, 0) for subject in SUBJECTS]
    made = Point(arm, (label,) if label else (), None, 10, runs)
    made.scores["clip_i"] = [np.full((2, 2), value) for value in likeness]
    made.scores["clip_t"] = [np.full((2, 2), obedience) for _ in SUBJECTS]
    return made


def results(*points: Point, arms: tuple[str, ...] = ("KronA", "LoRA")) -> Results:
    rates = axis("learning rate", "learning_rate", (1e-3, 1e-2))
    study = Study("s", "S", tuple(Arm(arm, {}, (rates,)) for arm in arms))
    base = point("base", "", (0.1,) * 4, 1.0)
    return Results(
        study,
        [base, *points],
        [],
        ["a", "b"],
        Scoring("base", "pocket"),
        dict.fromkeys(SUBJECTS, ""),
    )


def test_a_subject_does_not_choose_its_own_point() -> None:
    # Alone, the dog likes 0.01 best by far; the others do not, and so choose 1e-3 for the dog.
    low = point("KronA", "1e-3", (0.3, 0.8, 0.8, 0.8), 0.95)
    high = point("KronA", "0.01", (0.9, 0.7, 0.7, 0.7), 0.95)
    other = point("LoRA", "1e-3", (0.5,) * 4, 0.95)
    krona, lora = best_of_arms(results(low, high, other))
    assert krona.chosen == {"0.01": 3, "1e-3": 1}
    assert krona.scores["clip_i"].tolist() == [0.3, 0.7, 0.7, 0.7]
    assert lora.chosen == {"1e-3": 4}
    head, rows = best_table([krona, lora])
    assert head == ["", "chosen", "CLIP-I", "CLIP-T"]
    assert rows[0][1] == "0.01 (3 of 4), 1e-3 (1 of 4)"
    assert rows[2][0] == "LoRA less KronA" and rows[2][2].startswith("-0.100 [")


def test_likeness_and_the_prompt_count_alike() -> None:
    kept = point("KronA", "1e-3", (0.6,) * 4, 0.8)
    lost = point("KronA", "0.01", (0.9,) * 4, 0.5)
    other = point("LoRA", "0.01", (0.8,) * 4, 0.7)
    worse = point("LoRA", "1e-3", (0.6,) * 4, 0.8)
    krona, lora = best_of_arms(results(kept, lost, other, worse))
    assert krona.chosen == {"1e-3": 4}
    assert lora.chosen == {"0.01": 4}


def test_nothing_for_one_arm_or_one_point_each() -> None:
    points = [point("KronA", rate, (0.5,) * 4, 1.0) for rate in ("1e-3", "0.01")]
    assert best_of_arms(results(*points, arms=("KronA",))) == []
    assert best_of_arms(results(points[0], point("LoRA", "1e-3", (0.5,) * 4, 1.0))) == []
