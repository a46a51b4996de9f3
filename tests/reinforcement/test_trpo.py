"""TRPO on functions whose step is known."""

from __future__ import annotations

import math

import pytest
import torch

from metalearn.models import MLP
from metalearn.reinforcement import TRPO, Draws, GaussianPolicy, Navigation, PolicyMAML
from metalearn.reinforcement.outer import Sampling, outer_objective, sample
from metalearn.reinforcement.trpo import (
    Objective,
    conjugate_gradients,
    gauss_newton_product,
    hessian_product,
    trust_region_step,
)


def positive_definite(size: int) -> torch.Tensor:
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.mT + torch.eye(size)


def test_conjugate_gradients_solve_a_quadratic_exactly() -> None:
    matrix = positive_definite(6)
    vector = torch.randn(6, dtype=torch.float64)
    solution = conjugate_gradients(lambda v: matrix @ v, vector, 6, tolerance=0.0)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, vector))


def test_the_step_on_a_quadratic_is_the_natural_gradient_of_length_max_kl() -> None:
    curvature = positive_definite(5)
    slope = torch.randn(5, dtype=torch.float64)

    def objective(parameters: dict) -> Objective:
        w = parameters["w"]
        return Objective(slope @ w, w @ curvature @ w / 2)

    settings = TRPO(max_kl=0.01, damping=0.0, iterations=20, shrink=1 - 1e-9)
    start = {"w": torch.zeros(5, dtype=torch.float64)}
    after, record = trust_region_step(objective, start, settings)
    natural = torch.linalg.solve(curvature, slope)
    expected = -natural * math.sqrt(0.02 / float(slope @ natural))
    torch.testing.assert_close(after["w"], expected, rtol=1e-6, atol=0)
    assert record.kl == pytest.approx(0.01, rel=1e-6)
    assert record.accepted and record.after < record.before


@pytest.mark.parametrize("settings", [{"lr": 0.2}, {"lr": {"head": 0.2}}], ids=str)
def test_products_with_the_hessian_of_the_divergence_are_exact(settings: dict) -> None:
    learner = PolicyMAML(GaussianPolicy(MLP(2, 2, hidden=(3,))).double(), **settings)
    sampled = sample(learner, Navigation(), Sampling(2, 3, 5), Draws(0))
    *support, query = sampled.batches
    objective = outer_objective(learner, support, query, sampled.weights)
    start = {
        name: parameter.detach().requires_grad_()
        for name, parameter in learner.policy.named_parameters()
    }
    kl = objective(start).kl
    gradients = torch.autograd.grad(kl, list(start.values()), create_graph=True)
    gradient = torch.cat([each.flatten() for each in gradients])
    # The divergence is zero where it begins, and so is its gradient.
    assert kl.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12

    def kl_gradient(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([tensor.numel() for tensor in start.values()])
        moved = {
            name: part.view_as(tensor).detach().requires_grad_()
            for (name, tensor), part in zip(start.items(), parts, strict=True)
        }
        slopes = torch.autograd.grad(objective(moved).kl, list(moved.values()))
        return torch.cat([slope.flatten() for slope in slopes])

    vector = torch.randn(len(gradient), dtype=torch.float64)
    product = hessian_product(objective(start).kl, list(start.values()))(vector)
    middle = torch.cat([tensor.detach().flatten() for tensor in start.values()])
    differences = kl_gradient(middle + 1e-5 * vector) - kl_gradient(middle - 1e-5 * vector)
    torch.testing.assert_close(product, differences / 2e-5, rtol=1e-6, atol=1e-8)
    # The same from the outputs of the policies.
    _, _, outputs, curvatures = objective(start)
    cheaper = gauss_newton_product(outputs, curvatures, list(start.values()))(vector)
    torch.testing.assert_close(cheaper, product, rtol=1e-10, atol=1e-12)


def test_a_step_that_is_never_accepted_changes_nothing_and_is_recorded() -> None:
    def objective(parameters: dict) -> Objective:
        w = parameters["w"]
        # The divergence is that of w²/2 to second order, and a wall next to it.
        wall = torch.where(w.detach().abs() > 0, 1.0, 0.0)
        return Objective(w.sum(), (w**2).sum() / 2 + wall.sum())

    start = {"w": torch.zeros(2)}
    after, record = trust_region_step(objective, start)
    assert torch.equal(after["w"], start["w"])
    assert not record.accepted
    assert record.backtracks == 15
    assert record.after == record.before


def test_a_gradient_that_is_not_finite_is_reported() -> None:
    def objective(parameters: dict) -> Objective:
        w = parameters["w"]
        return Objective((w * math.nan).sum(), (w**2).sum())

    with pytest.raises(ValueError, match="outer gradient is not finite"):
        trust_region_step(objective, {"w": torch.zeros(2)})


@pytest.mark.parametrize("settings", [{"max_kl": 0}, {"shrink": 1.0}, {"damping": -1.0}])
def test_settings_out_of_range_are_named(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        TRPO(**settings)
