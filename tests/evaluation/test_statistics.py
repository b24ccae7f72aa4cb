"""Means and bootstrap intervals of grouped scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusekrona.evaluation.statistics import Summary, bootstrap_means, summarise


def test_one_value_has_neither_spread_nor_interval() -> None:
    summary = summarise(np.array([[0.25]]))
    assert (summary.mean, summary.std, summary.low, summary.high, summary.count) == (
        0.25, None, None, None, 1,
    )  # fmt: skip
    assert str(summary) == "0.250" and summary.signed() == "+0.250"


def test_missing_scores_are_left_out_of_the_mean() -> None:
    values = np.array([[1.0, math.nan], [3.0, 2.0]])
    summary = summarise(values)
    assert summary.mean == pytest.approx(2.0) and summary.count == 3
    assert summary.std == pytest.approx(1.0)
    assert 1.0 <= summary.low <= summary.mean <= summary.high <= 3.0
    nothing = summarise(np.full((2, 2), math.nan))
    assert math.isnan(nothing.mean) and nothing.count == 0 and nothing.low is None


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    summary = summarise(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(values.size)
    assert summary.low == pytest.approx(summary.mean - half, abs=0.15 * half)
    assert summary.high == pytest.approx(summary.mean + half, abs=0.15 * half)
    assert summarise(values) == summary  # a function of the values and the seed


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
