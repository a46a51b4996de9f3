"""Prototypes of unit length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn import Examples, ProtoNet


def logits(support: Tensor, targets: Tensor, queries: Tensor, *, normalised: bool) -> Tensor:
    model = nn.Sequential(nn.Linear(support.shape[1], support.shape[1], bias=False)).double()
    nn.init.eye_(model[0].weight)
    learner = ProtoNet(model, normalised=normalised, head="")
    return learner.predict(learner.adapt(Examples(support, targets)), queries)


def task() -> tuple[Tensor, Tensor, Tensor]:
    support = torch.randn(6, 4, dtype=torch.float64)
    return support, torch.tensor([0, 1, 2] * 2), torch.randn(5, 4, dtype=torch.float64)


def test_differences_of_logits_are_those_of_a_linear_head() -> None:
    """With |c_k| = 1: logit_j - logit_k = 2 f (c_j - c_k)."""
    support, targets, queries = task()
    means = torch.stack([support[targets == label].mean(0) for label in range(3)])
    means = means / means.norm(dim=1, keepdim=True)
    scores = logits(support, targets, queries, normalised=True).detach()
    linear = 2 * queries @ means.T
    left, right = (values - values[:, :1] for values in (scores, linear))
    assert torch.allclose(left, right, atol=1e-12)


def test_the_scale_of_a_support_set_changes_nothing() -> None:
    support, targets, queries = task()
    once = logits(support, targets, queries, normalised=True)
    assert torch.allclose(logits(9 * support, targets, queries, normalised=True), once)
    plain = logits(support, targets, queries, normalised=False)
    assert not torch.allclose(logits(9 * support, targets, queries, normalised=False), plain)


def test_prototypes_of_unit_length_are_the_same_with_and_without() -> None:
    support = torch.eye(3, 4, dtype=torch.float64)
    queries = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.arange(3)
    both = [logits(support, targets, queries, normalised=choice) for choice in (True, False)]
    assert torch.allclose(*both)


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match=r"normalised='yes'.*True or False"):
        ProtoNet(nn.Linear(2, 2), normalised="yes")  # type: ignore[arg-type]


def test_only_a_set_option_is_recorded() -> None:
    assert "normalised" not in ProtoNet(nn.Linear(2, 2)).settings()
    assert ProtoNet(nn.Linear(2, 2), normalised=True).settings()["normalised"] is True
