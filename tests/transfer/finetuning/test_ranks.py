"""Ranks, areas and correlations against scipy, with ties and with repeated items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transfer.finetuning.ranks import Ranks, area, correlation
from transfer.finetuning.scores import auc

TIED = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=30)


@given(TIED)
def test_ranks_are_those_of_scipy(values: list[float]) -> None:
    np.testing.assert_array_equal(Ranks(np.array(values))(), stats.rankdata(values))


@given(TIED, st.data())
def test_counts_stand_for_repeated_items(values: list[float], data: st.DataObject) -> None:
    items = len(values)
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=items, max_size=items)))
    repeated = np.repeat(values, counts)
    ranks = Ranks(np.array(values))(counts)
    np.testing.assert_array_equal(np.repeat(ranks, counts), stats.rankdata(repeated))


@pytest.mark.parametrize("ties", [4, 1000])
def test_area_and_correlation_are_those_of_scipy(ties: int) -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, ties, 200) / ties
    b = generator.integers(0, ties, 200) / ties + 0.5 * a
    positive = b > np.median(b)
    counts = generator.integers(0, 3, 200)
    repeated = (np.repeat(values, counts) for values in (a, b, positive))
    many_a, many_b, many_positive = repeated
    p, n = positive.sum(), (~positive).sum()
    u = stats.mannwhitneyu(a[positive], a[~positive]).statistic
    assert area(Ranks(a)(), positive) == pytest.approx(u / (p * n), abs=1e-12)
    u = stats.mannwhitneyu(many_a[many_positive], many_a[~many_positive]).statistic
    pairs = many_positive.sum() * (~many_positive).sum()
    assert area(Ranks(a)(counts), positive, counts) == pytest.approx(u / pairs, abs=1e-12)
    expected = stats.spearmanr(a, b).statistic
    assert correlation(Ranks(a)(), Ranks(b)()) == pytest.approx(expected, abs=1e-12)
    expected = stats.spearmanr(many_a, many_b).statistic
    measured = correlation(Ranks(a)(counts), Ranks(b)(counts), counts)
    assert measured == pytest.approx(expected, abs=1e-12)


def test_the_area_is_the_auc_of_two_classes() -> None:
    scores = torch.randn(50)
    labels = (torch.rand(50) < 0.3).long()
    logits = torch.stack([torch.zeros(50), scores], 1)
    assert area(Ranks(scores.numpy())(), labels.numpy() == 1) == auc(logits, labels)


def test_undefined_values_are_nan() -> None:
    assert np.isnan(Ranks(np.array([0.0, np.nan]))()).all()
    assert np.isnan(area(np.array([1.0, 2.0]), np.array([True, True])))
    assert np.isnan(correlation(np.array([1.0, 2.0]), np.array([1.5, 1.5])))
