"""Norms and condition numbers of adapted heads and prototypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import ANIL, NIL, ProtoNet
from metalearn.algorithms.base import Learner
from metalearn.analysis.adaptation.predictors import measured, predictors
from metalearn.data.glyphs import glyphs
from metalearn.models import Conv4
from metalearn.tasks import FewShot, SharedSubspace


def tasks(number: int = 30) -> FewShot:
    return FewShot(glyphs("test", size=16), ways=3, shots=2, queries=1, tasks=number)


def network() -> Conv4:
    torch.manual_seed(0)
    return Conv4(3, hidden=4, size=16)


def test_heads_of_regression_are_those_that_were_adapted() -> None:
    subspace = SharedSubspace(inputs=6, rank=2, tasks=12)
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 1, bias=False))
    learner = ANIL(model, lr=0.1, steps=3, loss=F.mse_loss)
    result = predictors(learner, subspace)
    heads = [
        learner.adapt(subspace[i].support).weights["1.weight"].detach().double() for i in range(12)
    ]
    stacked = torch.cat(heads)
    assert result.norm == pytest.approx(float(stacked.norm()) / math.sqrt(12))
    assert result.condition == pytest.approx(float(torch.linalg.cond(stacked)))
    assert (result.kind, result.tasks, result.rows, result.features) == ("head", 12, 1, 2)


def test_the_exact_predictors_have_the_requested_condition() -> None:
    subspace = SharedSubspace(tasks=50, condition=5.0)
    result = measured("head", [row.unsqueeze(0) for row in subspace.predictors])
    assert result.condition == pytest.approx(5)
    assert result.norm == pytest.approx(math.sqrt(2))


def test_prototypes_of_unit_length_bound_the_norm() -> None:
    learner = ProtoNet(network(), normalised=True)
    assert predictors(learner, tasks()).norm <= math.sqrt(3)
    assert predictors(ProtoNet(network()), tasks()).norm != predictors(learner, tasks()).norm


def test_the_mean_over_ways_counts_for_nothing() -> None:
    heads = [torch.randn(4, 9, dtype=torch.float64) for _ in range(5)]
    shifts = [torch.randn(1, 9, dtype=torch.float64) for _ in heads]
    moved = [head + 10 * shift for head, shift in zip(heads, shifts, strict=True)]
    first, second = (measured("head", heads), measured("head", moved))
    assert second.norm == pytest.approx(first.norm)
    assert second.condition == pytest.approx(first.condition)


def test_few_tasks_in_many_features_have_a_finite_condition() -> None:
    """Centred rows have rank ways - 1 a task, and the missing direction is not counted."""
    result = measured("head", [torch.randn(3, 50, dtype=torch.float64) for _ in range(4)])
    assert len(result.singular_values) == 8
    assert math.isfinite(result.condition)


def test_a_rotation_of_the_features_changes_nothing() -> None:
    heads = [torch.randn(3, 6, dtype=torch.float64) for _ in range(7)]
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    first, second = (measured("head", heads), measured("head", [h @ rotation for h in heads]))
    assert np.allclose(first.singular_values, second.singular_values)


def test_same_heads_have_an_infinite_condition_which_json_has_not() -> None:
    result = measured("head", [torch.ones(1, 3)] * 4)
    assert result.condition == math.inf and result.to_dict()["condition"] is None
    assert "inf" in str(result)


def test_the_same_numbers_twice_and_no_weight_moves() -> None:
    learner = ANIL(network(), lr=0.1)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    assert predictors(learner, tasks(), 5) == predictors(learner, tasks(), 5)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


@pytest.mark.parametrize("learner", [lambda model: NIL(model)])
def test_learners_without_predictors(learner: type[Learner]) -> None:
    with pytest.raises(TypeError, match=r"NIL has neither.*ProtoNet"):
        predictors(learner(network()), tasks())


@pytest.mark.parametrize("number", [0, 31])
def test_more_tasks_than_there_are_or_none(number: int) -> None:
    with pytest.raises(ValueError, match=f"tasks={number}"):
        predictors(ANIL(network(), lr=0.1), tasks(), number)


def test_an_adaptation_that_diverges_is_named() -> None:
    with pytest.raises(ValueError, match=r"task 1 is not finite.*rate"):
        measured("head", [torch.ones(1, 2), torch.full((1, 2), math.nan)])
