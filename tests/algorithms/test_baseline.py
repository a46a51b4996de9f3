"""Baseline and Baseline++: a fresh head on a fixed body."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalearn as ml
from metalearn.episodes import unstack
from metalearn.models import MLP
from metalearn.network.cosine_head import CosineHead, cosine_head
from tests.helpers import WAYS_TO_RUN, made_up_tasks, smooth_network


def test_the_head_is_the_one_that_plain_training_on_features_ends_with() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.Baseline(model, lr=0.1, steps=7)
    adapted = learner.adapt(task.support)
    before = learner.with_steps(0).adapt(task.support).weights
    head = nn.Linear(8, 3).double()
    with torch.no_grad():
        head.weight.copy_(before["6.weight"])
        head.bias.copy_(before["6.bias"])
    features = model[:6](task.support.inputs).detach()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(head(features), task.support.targets).backward()
        optimizer.step()
    torch.testing.assert_close(adapted.weights["6.weight"], head.weight, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(adapted.weights["6.bias"], head.bias, rtol=1e-11, atol=1e-13)
    assert adapted.weights["0.weight"] is model[0].weight


def test_the_models_own_head_changes_nothing() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.Baseline(model, steps=3)
    before = learner(episodes).detach()
    with torch.no_grad():
        model[6].weight.mul_(7)
    assert torch.equal(learner(episodes).detach(), before)
    ml.meta_backward(learner, episodes)
    assert model[6].weight.grad is None and model[0].weight.grad is not None


def test_the_seed_decides_the_fresh_head_and_no_generator_moves() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    state = torch.random.get_rng_state()
    first = ml.Baseline(model, steps=2)(episodes)
    assert torch.equal(first, ml.Baseline(model, steps=2)(episodes))
    assert not torch.equal(first, ml.Baseline(model, steps=2, seed=1)(episodes))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_any_number_of_ways(way: str) -> None:
    model = cosine_head(smooth_network())
    for learner in (
        ml.Baseline(smooth_network(), steps=2, execution=way),
        ml.BaselinePlusPlus(model, steps=2, execution=way),
    ):
        assert learner(made_up_tasks(ways=7)).shape == (3, 21, 7)


def test_a_separable_support_set_is_learned() -> None:
    model = MLP(4, 2)
    support = ml.Examples(torch.eye(4), torch.arange(4))
    for learner in (ml.Baseline(model, lr=1.0), ml.BaselinePlusPlus(cosine_head(MLP(4, 2)))):
        logits = learner.predict(learner.adapt(support), support.inputs)
        assert torch.equal(logits.argmax(1), support.targets)


def test_the_cosine_head_ignores_lengths() -> None:
    head = CosineHead(5, 3, scale=4.0).double()
    features = torch.randn(6, 5, dtype=torch.float64)
    expected = 4 * F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(3 * features), expected)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[2.0], [3.0], [0.5]]))
    torch.testing.assert_close(head(features), expected)


def test_a_cosine_head_takes_the_place_of_the_head_in_place() -> None:
    model = smooth_network()
    assert cosine_head(model) is model
    assert ml.head(model) == "6" and isinstance(model[6], CosineHead)
    assert model[6].weight.dtype == torch.float64


def test_other_heads_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"'6' of Baseline\+\+ is Linear; .*cosine_head\(model\)"):
        ml.BaselinePlusPlus(smooth_network())
    convolutional = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"'0' is Conv2d.*name a Linear"):
        ml.Baseline(convolutional)
    with pytest.raises(ValueError, match=r"'0' is Conv2d.*name one with head="):
        cosine_head(convolutional)
    with pytest.raises(ValueError, match=r"scale=0.*above 0"):
        cosine_head(MLP(2, 2), scale=0)
