"""The error law of a shared representation, where it can be computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metalearn.studies.shared_representation import Setting, error_law, excess_risk, measure, varied
from metalearn.tasks import SharedSubspace

SMALL = Setting(inputs=10, tasks=40)


def test_the_risk_of_the_true_subspace_is_the_exact_one() -> None:
    """noise² k / (n2 - k - 1), over 20,000 tasks."""
    tasks = SharedSubspace(10, 2, 10, 1, 20_000, noise=0.5)
    risk = excess_risk(tasks.basis, tasks)
    assert risk == pytest.approx(0.25 * 2 / 7, rel=0.05)


def test_without_noise_nothing_is_left() -> None:
    point = measure(replace(SMALL, noise=0.0))
    assert max(point.error, point.risk, point.oracle, point.law) < 1e-12


def test_the_law_for_even_predictors() -> None:
    point = measure(SMALL)
    assert point.law == pytest.approx(0.25 * 2 * 8 / (40 * 10))
    # Known predictors would do better than those that are fitted on 10 examples.
    assert 0.5 < point.error / point.law < 5


def test_the_law_grows_with_the_condition() -> None:
    even, uneven = (measure(replace(SMALL, condition=c)) for c in (1.0, 4.0))
    # ||W||_F² stays, so the eigenvalues are 2 T (16, 1) / 17 in place of T (1, 1).
    assert uneven.law / even.law == pytest.approx((17 / 32 + 17 / 2) / 2)
    assert uneven.error > 2 * even.error


def test_a_risk_is_at_least_that_of_the_lost_directions() -> None:
    tasks = SharedSubspace(10, 2, 10, 1, 200, noise=0.0)
    other = torch.linalg.qr(torch.randn(10, 2, dtype=torch.float64))[0]
    assert excess_risk(other, tasks) > 0.5


def test_same_seeds_same_table() -> None:
    first, second = (error_law((0, 1), {"tasks": (20, 40)}, SMALL) for _ in range(2))
    assert str(first) == str(second)
    assert [row["value"] for row in first.records()] == [20, 40]


def test_odd_settings() -> None:
    with pytest.raises(ValueError, match=r"seeds=\[1, 1\]"):
        error_law((1, 1))
    with pytest.raises(ValueError, match=r"no setting 'task'; choose from inputs"):
        varied("task", (1,), SMALL)
    with pytest.raises(ValueError, match=r"new_shots=3.*from 4 examples"):
        Setting(new_shots=3)
