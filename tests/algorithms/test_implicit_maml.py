"""Implicit MAML: the gradient at the minimum of the inner problem."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, Examples, unstack
from metalearn.models import MLP
from tests.helpers import WAYS_TO_RUN, gradients, made_up_tasks, outer_loss, smooth_network

STRENGTH = 30.0  # above the curvature of the loss, so that few steps converge
RATE = 0.02


def meta_gradient(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner).clone()


def through_the_steps(
    model: nn.Module, episodes: Episode, moving: list[str], steps: int
) -> torch.Tensor:
    """The gradient through every step of gradient descent on the inner problem."""
    parameters = dict(model.named_parameters())
    losses = []
    for task in unstack(episodes):
        weights = dict(parameters)
        for _ in range(steps):
            logits = torch.func.functional_call(model, weights, task.support.inputs)
            loss = nn.functional.cross_entropy(logits, task.support.targets)
            for name in moving:
                distance = weights[name] - parameters[name]
                loss = loss + STRENGTH / 2 * distance.square().sum()
            moved = [weights[name] for name in moving]
            slopes = torch.autograd.grad(loss, moved, create_graph=True)
            weights |= {
                name: weight - RATE * slope
                for name, weight, slope in zip(moving, moved, slopes, strict=True)
            }
        logits = torch.func.functional_call(model, weights, task.query.inputs)
        losses.append(nn.functional.cross_entropy(logits, task.query.targets))
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    return torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("moving", ["", "6", "4"])
def test_at_the_minimum_it_is_the_gradient_through_many_steps(moving: str, way: str) -> None:
    """Of layers that do not move, too."""
    model, episodes = smooth_network(), made_up_tasks(tasks=2)
    names = [name for name, _ in model.named_parameters() if name.startswith(moving)]
    learner = ml.ImplicitMAML(
        model, {moving: RATE}, 30, strength=STRENGTH, solver_steps=14, execution=way
    )
    torch.testing.assert_close(
        meta_gradient(learner, episodes),
        through_the_steps(model, episodes, names, 30),
        rtol=1e-7,
        atol=1e-9,
    )


def test_of_a_linear_model_it_is_the_closed_form() -> None:
    """With squares, phi = (H + s I)^-1 (2/n X^T y + s theta)."""
    model = nn.Linear(3, 1, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    learner = ml.ImplicitMAML(
        model, 0.1, 300, strength=1.5, solver_steps=3, loss=nn.functional.mse_loss
    )
    support = Examples(x, y)
    weight = learner.adapt(support).weights["weight"]
    hessian = 2 / 4 * x.T @ x
    pull = 1.5 * torch.eye(3, dtype=torch.float64)
    theta = model.weight.detach()
    expected = torch.linalg.solve(hessian + pull, 2 / 4 * x.T @ y + 1.5 * theta.T).T
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((weight * direction).sum(), model.weight)
    exact = 1.5 * torch.linalg.solve(hessian + pull, direction.T).T
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-12)


def test_a_strong_pull_is_the_gradient_without_adaptation() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    pulled = ml.ImplicitMAML(model, 1e-7, strength=1e7)
    start = ml.MAML(model, 0.1, steps=0)
    torch.testing.assert_close(
        meta_gradient(pulled, episodes), meta_gradient(start, episodes), rtol=1e-4, atol=1e-5
    )


def test_more_steps_of_either_kind_come_nearer() -> None:
    model, episodes = smooth_network(), made_up_tasks(tasks=1)

    def gradient(steps: int, solver_steps: int) -> torch.Tensor:
        learner = ml.ImplicitMAML(model, RATE, steps, strength=STRENGTH, solver_steps=solver_steps)
        return meta_gradient(learner, episodes)

    exact = gradient(30, 14)

    def error(steps: int, solver_steps: int) -> float:
        return float((gradient(steps, solver_steps) - exact).norm() / exact.norm())

    assert error(30, 1) > 10 * error(30, 3) > 100 * error(30, 6)
    assert error(2, 14) > 10 * error(10, 14)


def test_memory_does_not_grow_with_the_inner_steps() -> None:
    """The graph of the loss is as large after 30 steps as after one."""
    from metalearn.engine.derivatives import nodes

    def size(steps: int) -> int:
        learner = ml.ImplicitMAML(smooth_network(), 0.1, steps, execution="loop")
        return sum(1 for _ in nodes(outer_loss(learner, made_up_tasks(tasks=1))))

    assert size(30) == size(1)


def test_without_gradients_it_only_adapts() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.ImplicitMAML(model, 0.25, 5)
    with torch.no_grad():
        weights = learner.adapt(task.support).weights
    assert not any(weight.requires_grad for name, weight in weights.items())
    for name, weight in learner.adapt(task.support).weights.items():
        torch.testing.assert_close(weight.detach(), weights[name], rtol=1e-12, atol=1e-14)


def test_a_derivative_of_the_meta_gradient_is_refused() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    loss = outer_loss(ml.ImplicitMAML(model, 0.25, 3), episodes)
    with pytest.raises(RuntimeError, match="has no derivative; use MAML"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def test_settings_that_it_does_not_have_are_refused() -> None:
    model = MLP(4, 2)
    with pytest.raises(ValueError, match=r"strength=0: .*above 0; without a pull, use MAML"):
        ml.ImplicitMAML(model, 0.1, strength=0)
    with pytest.raises(ValueError, match="solver_steps=0"):
        ml.ImplicitMAML(model, 0.1, solver_steps=0)
    with pytest.raises(ValueError, match="no gradient for a learned inner rate"):
        ml.ImplicitMAML(model, nn.Parameter(torch.tensor(0.1)))
    with pytest.raises(ValueError, match=r"use MAML\(\.\.\., first_order=True\)"):
        ml.ImplicitMAML(model, 0.1, first_order=True)
    learner = ml.ImplicitMAML(model, 0.1)
    learner.strength = 0.5
    assert learner.settings()["strength"] == 0.5
