"""EWC and replay on two least-squares tasks, where both have a closed form."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from metalearn.training.regularisers import pulled
from transfer import ewc


class LeastSquares(NamedTuple):
    """`mean (x w - y)^2 / 2`, with its Hessian and its optimum."""

    inputs: Tensor
    targets: Tensor

    @property
    def hessian(self) -> Tensor:
        return self.inputs.T @ self.inputs / len(self.inputs)

    @property
    def optimum(self) -> Tensor:
        return torch.linalg.lstsq(self.inputs, self.targets).solution

    def loss(self, weights: Tensor) -> Tensor:
        return (self.inputs @ weights - self.targets).square().mean() / 2


def task(seed: int) -> LeastSquares:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return LeastSquares(inputs, torch.randn(40, generator=generator, dtype=torch.float64))


FIRST, SECOND = task(1), task(2)


def minimum(strength: float) -> Tensor:
    """(H2 + lam H1)^-1 (H2 m2 + lam H1 m1)."""
    hessian = SECOND.hessian + strength * FIRST.hessian
    slope = SECOND.hessian @ SECOND.optimum + strength * FIRST.hessian @ FIRST.optimum
    return torch.linalg.solve(hessian, slope)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 20.0])
def test_ewc_with_the_whole_fisher_has_its_minimum_in_closed_form(strength: float) -> None:
    """In the eigenbasis of H1 the Fisher information is diagonal, and the penalty exact."""
    values, basis = torch.linalg.eigh(FIRST.hessian)
    model = nn.Linear(5, 1, bias=False).double()
    to = {"weight": (basis.T @ FIRST.optimum)[None]}
    penalty = pulled(to, strength, {"weight": values[None]})
    at = (basis.T @ minimum(strength)).detach()
    with torch.no_grad():
        model.weight.copy_(at[None])
    with penalty(model) as extra:
        loss = SECOND.loss(basis @ model.weight[0]) + extra()
        (gradient,) = torch.autograd.grad(loss, model.weight)
    assert float(gradient.abs().max()) < 1e-13


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_replay_is_ewc_of_strength_r_over_1_minus_r(share: float) -> None:
    weights = minimum(share / (1 - share)).requires_grad_()
    loss = (1 - share) * SECOND.loss(weights) + share * FIRST.loss(weights)
    (gradient,) = torch.autograd.grad(loss, weights)
    assert float(gradient.abs().max()) < 1e-14


def test_the_ends_are_the_optima_of_the_tasks_and_of_both() -> None:
    torch.testing.assert_close(minimum(0.0), SECOND.optimum)
    torch.testing.assert_close(minimum(1e12), FIRST.optimum, rtol=0, atol=1e-10)
    both = LeastSquares(
        torch.cat([FIRST.inputs, SECOND.inputs]), torch.cat([FIRST.targets, SECOND.targets])
    )
    torch.testing.assert_close(minimum(1.0), both.optimum)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), {"0": -1.0}])
def test_a_strength_of_ewc_is_checked_when_it_is_made(strength: float | dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"strength.*give a finite number from 0"):
        ewc(strength)
