"""Regression tasks that share a subspace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metalearn.tasks import SharedSubspace


@pytest.mark.parametrize("condition", [1.0, 3.0, 16.0])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_condition_number_is_the_requested_one(condition: float, rank: int) -> None:
    tasks = SharedSubspace(inputs=8, rank=rank, tasks=40, condition=condition)
    assert float(torch.linalg.cond(tasks.predictors)) == pytest.approx(condition, rel=1e-9)
    # mean squared length `rank`, whatever the condition
    assert float(tasks.predictors.square().sum() / 40) == pytest.approx(rank)


def test_the_basis_is_orthonormal_and_shared_on_request() -> None:
    train = SharedSubspace(inputs=8, rank=3, tasks=10, seed=1)
    assert torch.allclose(train.basis.T @ train.basis, torch.eye(3).double(), atol=1e-12)
    test = SharedSubspace(inputs=8, rank=3, tasks=10, seed=2, basis=train.basis)
    assert torch.equal(test.basis, train.basis)
    assert not torch.equal(test.predictors, train.predictors)
    assert not torch.equal(SharedSubspace(inputs=8, rank=3, tasks=10, seed=2).basis, train.basis)


def test_targets_are_linear_in_the_subspace() -> None:
    tasks = SharedSubspace(inputs=6, rank=2, tasks=5, noise=0.0, dtype=torch.float64)
    for number in (0, 4):
        for part in tasks[number]:
            expected = part.inputs @ tasks.basis @ tasks.predictors[number]
            assert torch.allclose(part.targets[:, 0], expected, atol=1e-12)


def test_the_noise_has_the_requested_deviation() -> None:
    noisy, clean = (
        SharedSubspace(shots=2000, queries=2000, tasks=3, noise=noise)[1] for noise in (0.5, 0.0)
    )
    assert torch.equal(noisy.support.inputs, clean.support.inputs)
    for one, other in zip(noisy, clean, strict=True):
        difference = one.targets - other.targets
        assert float(difference.std()) == pytest.approx(0.5, rel=0.06)


def test_tasks_repeat_by_seed_and_index_in_any_order() -> None:
    first, again = (SharedSubspace(tasks=9, seed=3) for _ in range(2))
    for number in (7, 0, -2):
        index = number % 9
        assert torch.equal(first[number].query.targets, again[index].query.targets)
    assert not torch.equal(first[0].query.inputs, first[1].query.inputs)
    assert not torch.equal(first[0].query.inputs, SharedSubspace(tasks=9, seed=4)[0].query.inputs)
    with pytest.raises(IndexError, match=r"9"):
        first[9]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"rank": 21}, ValueError, "rank=21.*inputs=20"),
        ({"shots": 0}, ValueError, "shots=0.*at least 1"),
        ({"shots": 2.5}, TypeError, "shots=2.5"),
        ({"tasks": 1}, ValueError, "tasks=1.*at least 2"),
        ({"condition": 0.5}, ValueError, "condition=0.5.*from 1"),
        ({"condition": math.nan}, ValueError, "condition=nan.*from 1"),
        ({"rank": 1, "condition": 2}, ValueError, "condition=2.*rank of at least 2"),
        ({"noise": -1}, ValueError, "noise=-1.*from 0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"dtype": torch.int64}, TypeError, "floating-point"),
        ({"basis": torch.eye(20)}, ValueError, r"\(20, 2\)"),
        ({"basis": 2 * torch.eye(20)[:, :2]}, ValueError, "orthonormal.*qr"),
    ],
)
def test_odd_settings(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SharedSubspace(**settings)


def test_settings_are_a_record() -> None:
    record = SharedSubspace(tasks=9).settings()
    assert record["data"]["condition"] == 1.0 and record["tasks"] == 9
