"""A head by ridge regression."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.algorithms.r2d2 import ridge_weight
from metalearn.episodes import Episode, unstack
from tests.helpers import WAYS_TO_RUN, central_difference, made_up_tasks, smooth_network

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("examples", [3, 8, 20])
def test_the_woodbury_form_equals_the_direct_solve(examples: int) -> None:
    inputs = torch.randn(2, examples, 8, dtype=torch.float64)
    targets = torch.randn(2, examples, 3, dtype=torch.float64)
    gram = inputs.mT @ inputs + 0.3 * torch.eye(8, dtype=torch.float64)
    direct = torch.linalg.solve(gram, inputs.mT @ targets)
    torch.testing.assert_close(ridge_weight(inputs, targets, 0.3), direct, rtol=1e-10, atol=1e-12)


def test_the_weight_minimises_the_regularised_squares() -> None:
    inputs = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.randn(6, 3, dtype=torch.float64)
    weight = ridge_weight(inputs, targets, 0.7).requires_grad_()
    loss = (inputs @ weight - targets).square().sum() + 0.7 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-12


def test_the_logits_by_hand_in_the_space_of_features() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.R2D2(model, ridge=0.5, scale=3.0)
    with torch.no_grad():
        learner.shift.fill_(0.25)
    support, queries = (
        torch.cat([model[:6](part.inputs), torch.ones(len(part.targets), 1)], 1) for part in task
    )
    labels = nn.functional.one_hot(task.support.targets, 3).double()
    gram = support.T @ support + 0.5 * torch.eye(9, dtype=torch.float64)
    expected = 3.0 * queries @ torch.linalg.inv(gram) @ support.T @ labels + 0.25
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_a_strong_ridge_orders_queries_as_class_sums_do() -> None:
    """For a ridge far above the kernel, W -> X^T Y / ridge."""
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.R2D2(model, ridge=1e9, scale=1e9)
    support, queries = (
        torch.cat([model[:6](part.inputs), torch.ones(len(part.targets), 1)], 1) for part in task
    )
    labels = nn.functional.one_hot(task.support.targets, 3).double()
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(found, queries @ support.T @ labels, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_the_gradient_by_the_regulariser_the_scale_and_the_shift(way: str) -> None:
    """The shift counts under a loss that softmax does not cancel."""

    def squares(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (logits - nn.functional.one_hot(targets, 3)).square().mean()

    learner = ml.R2D2(smooth_network(), ridge=0.5, loss=squares, execution=way)
    ml.meta_backward(learner, made_up_tasks())
    for name in ("log_ridge", "scale", "shift"):
        parameters = learner.meta_parameters()
        direction = [torch.full_like(p, float(key == name)) for key, p in parameters.items()]
        exact = parameters[name].grad.item()
        assert exact == pytest.approx(central_difference(learner, direction), rel=1e-7)
        assert abs(exact) > 1e-6


def test_any_number_of_ways_and_a_trained_ridge_stays_positive() -> None:
    learner = ml.R2D2(smooth_network())
    assert learner(made_up_tasks(ways=7)).shape == (3, 21, 7)
    with torch.no_grad():
        learner.log_ridge.sub_(50)
    assert learner(made_up_tasks()).isfinite().all()


def test_features_of_half_precision_are_solved_in_single() -> None:
    learner = ml.R2D2(smooth_network().float())
    episodes = made_up_tasks()
    single = Episode(*(part._replace(inputs=part.inputs.float()) for part in episodes))
    with torch.autocast("cpu", torch.bfloat16):
        logits = learner(single)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match=r"ridge=.*above 0"):
        ml.R2D2(nn.Linear(2, 2), ridge)
