"""Means and intervals of grouped scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusekrona.evaluation.scoring import summary_of
from diffusekrona.evaluation.statistics import (
    Summary,
    bootstrap_means,
    by_group,
    separated,
    summarise,
)


def test_one_value_has_neither_spread_nor_interval() -> None:
    summary = summarise(np.array([[0.25]]))
    assert (summary.mean, summary.std, summary.low, summary.high, summary.count) == (
        0.25, None, None, None, 1,
    )  # fmt: skip
    assert str(summary) == "0.250" and summary.signed() == "+0.250"


def test_missing_scores_are_left_out_and_their_groups_count_once() -> None:
    values = np.array([[1.0, math.nan], [3.0, 2.0]])
    summary = summarise(values)
    assert summary.mean == pytest.approx(1.75) and summary.count == 3
    assert summary.std == pytest.approx(1.0)
    half = 12.7062047 * 0.75  # t with one degree of freedom, times the standard error of two means
    assert (summary.low, summary.high) == pytest.approx((1.75 - half, 1.75 + half))
    nothing = summarise(np.full((2, 2), math.nan))
    assert math.isnan(nothing.mean) and nothing.count == 0 and nothing.low is None


def test_the_interval_is_students_t_over_the_outermost_level() -> None:
    values = np.random.default_rng(0).normal(size=(6, 1, 8, 2))
    summary = summarise(values)
    means = values.reshape(6, -1).mean(axis=1)
    half = 2.5705818 * means.std(ddof=1) / math.sqrt(6)
    assert summary.mean == pytest.approx(values.mean())
    assert (summary.low, summary.high) == pytest.approx((summary.mean - half, summary.mean + half))
    assert summarise(values[:1]) == summarise(values[0, 0])  # one subject and run: over prompts


def test_the_interval_of_six_subjects_has_the_mean_in_95_percent() -> None:
    """A percentile bootstrap has it in 86 %."""
    subjects = np.random.default_rng(5).normal(size=(4000, 6, 1))
    pictures = subjects + np.random.default_rng(6).normal(size=(4000, 6, 16))
    found = [summarise(values) for values in pictures]
    assert np.mean([s.low <= 0 <= s.high for s in found]) == pytest.approx(0.95, abs=0.012)


def test_the_interval_ends_where_the_score_does() -> None:
    shares = np.array([1.0, 1.0, 1.0, 1.0, 0.9375, 1.0])
    free, bounded = summarise(shares), summarise(shares, (0.0, 1.0))
    assert free.high > 1 and bounded.high == 1 and bounded.low == free.low
    assert summary_of("place", shares) == bounded and summary_of("pose", shares) == free


def test_pictures_of_one_prompt_do_not_count_as_independent() -> None:
    prompts = np.random.default_rng(1).normal(size=(10, 1))
    alike = np.repeat(prompts, 50, axis=1)
    grouped, pooled = summarise(alike), summarise(alike.reshape(-1))
    assert grouped.mean == pytest.approx(pooled.mean)
    assert grouped.high - grouped.low > 4 * (pooled.high - pooled.low)


def test_bootstrap_draws_whole_groups() -> None:
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    means = bootstrap_means(values, resamples=200)
    assert means.shape == (200,) and set(means) == {0.0, 0.5, 1.0}


def test_a_difference_is_written_with_its_signs() -> None:
    assert Summary(-0.1, 0.2, -0.15, 0.05, 4).signed() == "-0.100 [-0.150, +0.050]"
    degrees = Summary(-1.04, 0.2, -2.15, 0.05, 4)
    assert degrees.signed() == "-1.0 [-2.1, +0.1]"  # of one kind of score, all with one digit


def test_runs_are_laid_under_their_groups() -> None:
    values = [np.full((2,), float(n)) for n in range(3)]
    grouped = by_group(values, ["dog", "cat", "dog"])
    assert grouped.shape == (2, 2, 2)
    assert grouped[0].tolist() == [[0, 0], [2, 2]] and grouped[1][0].tolist() == [1, 1]
    assert np.isnan(grouped[1][1]).all()


def test_many_runs_of_few_subjects_do_not_narrow_the_interval() -> None:
    subjects = np.random.default_rng(0).normal(size=6)
    few = [np.full((4, 2), value) for value in subjects]
    many = [value for value in few for _ in range(10)]
    one = summarise(by_group(few, range(6)))
    ten = summarise(by_group(many, [n for n in range(6) for _ in range(10)]))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)


def test_separated_keeps_the_error_over_all_comparisons() -> None:
    """Of 40 effects that are all 0, hardly ever any is found; a strong one among them always is."""
    random = np.random.default_rng(3)
    found = 0
    for _ in range(40):
        effects = random.normal(size=(40, 8))
        found += separated(effects).any()
        effects[7] = 8 + 0.2 * random.normal(size=8)
        assert separated(effects)[7]
    assert found <= 5
    assert not separated(np.ones((3, 2))).any()  # two subjects say nothing


def test_separated_can_tell_six_subjects_from_chance_but_not_five() -> None:
    effects = np.random.default_rng(4).normal(size=(20, 6))
    effects[3] = np.array([5.0, 5.1, 4.9, 5.2, 4.8, 5.0])
    assert separated(effects).tolist() == [number == 3 for number in range(20)]
    assert not separated(effects[:, :5]).any()
