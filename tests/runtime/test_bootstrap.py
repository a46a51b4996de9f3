"""Percentile intervals of the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from metalearn.runtime.statistics import bootstrap


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=400)
    (mean,) = bootstrap(lambda counts: np.array([counts @ values / counts.sum()]), 400, draws=4000)
    error = values.std() / np.sqrt(400)
    assert mean.value == pytest.approx(values.mean())
    assert mean.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert mean.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_a_difference_is_paired() -> None:
    values = np.random.default_rng(0).normal(size=200)

    def means(counts: np.ndarray) -> np.ndarray:
        first = counts @ values / counts.sum()
        second = counts @ (values + 0.01) / counts.sum()
        return np.array([first, second, second - first])

    first, second, difference = bootstrap(means, 200, draws=200)
    assert first.high > second.low  # apart, the two could not be told from each other
    assert difference.low == pytest.approx(0.01) == pytest.approx(difference.high)


def test_the_seed_decides_the_samples() -> None:
    values = np.arange(50.0)
    runs = [
        bootstrap(lambda counts: np.array([counts @ values]), 50, seed=seed) for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_samples_without_a_value_are_left_out() -> None:
    known, never = bootstrap(
        lambda counts: np.array([np.nan if counts[0] > 1 else counts[0], np.nan]), 5
    )
    assert (known.value, known.low, known.high) == (1, 0, 1)
    assert np.isnan(never.low) and never.shown() == "-"
    (plain,) = bootstrap(lambda counts: counts[:1], 5, draws=0)
    assert plain.shown() == "1.000"
