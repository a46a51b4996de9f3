"""Discounted sums, the linear baseline, and advantages."""

from __future__ import annotations

import pytest
import torch

from metalearn.reinforcement.advantages import (
    baseline_features,
    discounted_sums,
    generalized_advantages,
    linear_baseline,
    normalized,
)


def test_discounted_sums_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    sums = discounted_sums(rewards, 0.9)
    expected = torch.tensor([[1 + 0.9 * (2 + 0.9 * 3), 2 + 0.9 * 3, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(sums, expected)


def test_advantages_with_decay_1_are_returns_minus_values() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 2, 3, 7, dtype=torch.float64)
    advantages = generalized_advantages(rewards, values, discount=0.9, decay=1.0)
    torch.testing.assert_close(advantages, discounted_sums(rewards, 0.9) - values)


def test_advantages_are_the_sum_of_their_definition() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 5, dtype=torch.float64)
    padded = torch.cat((values, torch.zeros(1)))
    delta = rewards + 0.9 * padded[1:] - values
    expected = torch.stack(
        [
            torch.stack([(0.9 * 0.8) ** k * delta[t + k] for k in range(5 - t)]).sum()
            for t in range(5)
        ]
    )
    advantages = generalized_advantages(rewards, values, discount=0.9, decay=0.8)
    torch.testing.assert_close(advantages, expected)


def test_the_baseline_is_exact_on_returns_that_are_linear_in_its_features() -> None:
    torch.manual_seed(0)
    observations = torch.randn(3, 6, 20, 2, dtype=torch.float64)
    features = baseline_features(observations)
    assert features.shape == (3, 6, 20, 8)
    coefficients = torch.randn(3, 1, 8, 1, dtype=torch.float64)
    returns = (features @ coefficients).squeeze(-1)
    mask = torch.ones(3, 6, 20, dtype=torch.float64)
    mask[:, 2, 9:] = 0
    # What is masked must not matter.
    spoilt = torch.where(mask.bool(), returns, 1e6)
    fit = linear_baseline(observations, spoilt, mask, ridge=1e-12)
    torch.testing.assert_close(fit.values, returns * mask, atol=1e-6, rtol=0)


def test_each_task_has_a_fit_of_its_own() -> None:
    torch.manual_seed(0)
    observations = torch.randn(4, 3, 9, 2)
    returns = torch.randn(4, 3, 9)
    mask = torch.ones(4, 3, 9)
    together = linear_baseline(observations, returns, mask).values
    alone = linear_baseline(observations[2:3], returns[2:3], mask[2:3]).values
    torch.testing.assert_close(together[2:3], alone)


def test_a_singular_fit_raises_the_ridge_and_then_an_error() -> None:
    mask = torch.ones(2, 1, 5)
    observations = torch.zeros(2, 1, 5, 3)
    # Two equal columns of 1e5 are singular to rounding; the other task is not.
    observations[1] = 1e5
    fit = linear_baseline(observations, torch.ones(2, 1, 5), mask, ridge=1e-10)
    assert fit.values.isfinite().all()
    assert fit.ridge[0] == 1e-10
    observations[1] = 1e12
    with pytest.raises(ValueError, match=r"baseline of task 1 is singular.*scale the observations"):
        linear_baseline(observations, torch.ones(2, 1, 5), mask)


def test_normalised_advantages_ignore_what_is_masked() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, 4)
    mask[:, 1, 2:] = 0
    result = normalized(torch.where(mask.bool(), values, 1e4), mask)
    for task in range(2):
        counted = result[task][mask[task].bool()]
        assert float(counted.mean()) == pytest.approx(0, abs=1e-6)
        assert float(counted.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not result[mask == 0].any()
