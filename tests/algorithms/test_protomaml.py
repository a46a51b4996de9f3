"""A head that starts from prototypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, unstack
from tests.helpers import WAYS_TO_RUN, gradients, made_up_tasks, outer_loss, smooth_network

pytestmark = pytest.mark.usefixtures("two_threads")


def meta_gradient(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_without_a_step_it_is_protonet_up_to_a_constant_of_each_query(way: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    start = ml.ProtoMAML(model, 0.1, steps=0, execution=way)(episodes)
    distances = ml.ProtoNet(model, execution="loop")(episodes)
    features = torch.stack([model[:6](task.query.inputs) for task in unstack(episodes)])
    # -|f - c|^2 = 2 f c - |c|^2 - |f|^2
    expected = distances + features.square().sum(-1, keepdim=True)
    torch.testing.assert_close(start, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_without_a_step_its_gradient_is_protonets(way: str) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    start = ml.ProtoMAML(model, 0.1, steps=0, execution=way)
    torch.testing.assert_close(
        meta_gradient(start, episodes).clone(),
        meta_gradient(ml.ProtoNet(model), episodes),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_two_steps_by_hand(way: str, *, first_order: bool) -> None:
    """The inner gradient holds the prototypes fixed; the outer one goes through them."""
    model, episodes = smooth_network(), made_up_tasks()
    losses = []
    for task in unstack(episodes):
        support = model[:6](task.support.inputs)
        means = torch.stack([support[task.support.targets == way].mean(0) for way in range(3)])
        weights = dict(model.named_parameters())
        weights |= {"6.weight": 2 * means, "6.bias": -means.square().sum(1)}
        # Leaves of their own, so the inner gradient does not go through the means.
        weights = {name: weight.view_as(weight) for name, weight in weights.items()}
        for _ in range(2):
            logits = torch.func.functional_call(model, weights, task.support.inputs)
            loss = nn.functional.cross_entropy(logits, task.support.targets)
            steps = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
            weights = {
                name: weight - 0.1 * step
                for (name, weight), step in zip(weights.items(), steps, strict=True)
            }
        logits = torch.func.functional_call(model, weights, task.query.inputs)
        losses.append(nn.functional.cross_entropy(logits, task.query.targets))
    body = [parameter for name, parameter in model.named_parameters() if name[0] != "6"]
    expected = torch.autograd.grad(torch.stack(losses).mean(), body)
    learner = ml.ProtoMAML(model, 0.1, 2, first_order=first_order, execution=way)
    torch.testing.assert_close(
        meta_gradient(learner, episodes),
        torch.cat([gradient.flatten() for gradient in expected]),
        rtol=1e-9,
        atol=1e-12,
    )


def test_the_gradient_flows_through_the_prototypes() -> None:
    """A body that does not move in the inner loop is trained by the prototypes alone."""
    model, episodes = smooth_network(), made_up_tasks()
    learner = ml.ProtoMAML(model, {"6": 0.1}, 2)
    whole = meta_gradient(learner, episodes).clone()
    loss = outer_loss(learner, episodes)
    assert loss.requires_grad and whole.abs().max() > 0
    names = [name.removeprefix("model.") for name in learner.meta_parameters()]
    assert "6.weight" not in names and "0.weight" in names


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_tasks_may_have_any_number_of_ways(way: str) -> None:
    learner = ml.ProtoMAML(smooth_network(ways=3), 0.1, 2, execution=way)
    assert learner(made_up_tasks(ways=7)).shape == (3, 21, 7)
    assert ml.meta_backward(learner, made_up_tasks(ways=2)).logits.shape == (3, 6, 2)


def test_a_head_without_a_bias_or_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'1' is Linear\(.*bias=False.*Linear with a bias"):
        ml.ProtoMAML(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), 0.1)
    with pytest.raises(ValueError, match=r"'0' is Conv2d.*head="):
        ml.ProtoMAML(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 0.1)


def test_an_absent_class_is_named() -> None:
    episodes = made_up_tasks()
    episodes.support.targets[1][episodes.support.targets[1] == 0] = 2
    with pytest.raises(ValueError, match="support set of task 1 has no example of class 0"):
        ml.ProtoMAML(smooth_network(), 0.1)(episodes)
