"""Implicit MAML: the meta-gradient from where the inner loop ends, not from its steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.engine.attention import attention
from metalearn.engine.conjugate_gradients import conjugate_gradients
from metalearn.engine.inner_loop import Closure, Rates, inner_loop
from metalearn.network.functional import Functional
from metalearn.network.module_call import Weights
from metalearn.runtime.checks import positive_number, whole_number

from .maml import MAML
from .rates import LR


class ImplicitMAML(MAML):
    """Implicit MAML (Rajeswaran, Finn, Kakade and Levine, NeurIPS 2019, arXiv:1909.04630).

        phi = argmin L_support(phi) + strength / 2 |phi - theta|^2
        d L_query / d theta = (I + H / strength)^-1 grad L_query(phi)

    with `H` the Hessian of `L_support` at `phi`. The inverse is applied by conjugate gradients, so
    memory does not grow with the inner steps, and any inner update will do. The gradient is exact
    as far as both have converged. It reaches layers that do not move, too, by

        -d/d theta' <grad L_support(phi), v> / strength

    with `v` that gradient.

    If `strength` is less than the negative curvature of `L_support`, the inner problem has no
    minimum there, and conjugate gradients stop early.

    Args:
        model: as for `MAML`.
        lr: as for `MAML`, but not learned: the minimum does not depend on it. Steps diverge if it
            is above 2 / (strength + the largest curvature).
        steps: inner steps.
        strength: of the pull towards the initial weights (the paper's lambda), above 0.
        solver_steps: steps of conjugate gradients; each takes a Hessian-vector product.
        **options: `head`, `loss`, `update`, `execution` and `output`, as for `MAML`.

    Raises:
        ValueError: a rate is learned, or `strength` is not above 0.

    Example:
        >>> from metalearn.models import MLP
        >>> learner = ImplicitMAML(MLP(1, 1), lr=0.1, strength=1.0, loss=nn.functional.mse_loss)
        >>> learner.steps, learner.settings()["strength"]
        (16, 1.0)
    """

    computes_only = True
    takes_padding = True

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 16,
        *,
        strength: float = 2.0,
        solver_steps: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(model, lr, steps, **options)
        self.strength = strength
        self.solver_steps = solver_steps

    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        own = {"strength": self.strength, "solver_steps": self.solver_steps}
        return {**super().settings(), **own}

    def check_strength(self, strength: float) -> float:
        """The pull towards the initial weights, if it is above 0."""
        return positive_number("strength", strength, "without a pull, use MAML")

    def check_solver_steps(self, steps: int) -> int:
        """The number of steps of conjugate gradients, if it is at least 1."""
        return whole_number("solver_steps", steps)

    def check_first_order(self, first_order: object) -> bool:
        """The gradient is implicit, and not of first order."""
        if first_order is not False:
            raise ValueError("ImplicitMAML has no first_order; use MAML(..., first_order=True)")
        return False

    def check_lr(self, lr: LR) -> LR:
        """The inner rate; a learned one is refused, because the minimum does not depend on it."""
        if any(isinstance(rate, nn.Parameter) for rate in self.paths_of(lr).values()):
            raise ValueError(
                "ImplicitMAML has no gradient for a learned inner rate; give a number, or use MAML"
                " to learn it"
            )
        return super().check_lr(lr)

    def take_steps(
        self, network: Functional, closure: Closure, weights: Weights, rates: Rates
    ) -> Weights:
        """Minimise the pulled closure near these weights; the minimum is differentiable to them."""
        start = flat([weights[name].detach() for name in rates], network)

        def pulled(moved: Weights) -> Tensor:
            distance = flat([moved[name] for name in rates], network) - start
            return closure(moved) + self.strength / 2 * distance.square().sum(-1)

        update = self.update_on(network)
        with torch.no_grad():
            minimum = inner_loop(
                pulled,
                weights,
                rates,
                self.steps,
                update=update,
                backward=lambda: self.backward(network),
            )
        if not (torch.is_grad_enabled() and rates and self.steps):
            return minimum
        moved = {name: minimum[name].detach().requires_grad_() for name in rates}
        return {**weights, **self._differentiable(network, closure, weights, moved)}

    def _differentiable(
        self, network: Functional, closure: Closure, weights: Weights, moved: Weights
    ) -> Weights:
        """The weights that moved to the minimum, differentiable by the implicit function theorem.

        F(phi, theta) = phi - theta + grad L(phi) / strength is zero at the minimum, so
        d phi = -(dF / d phi)^-1 dF, and dF / d phi = I + H / strength is symmetric.
        """
        leaves = list(moved.values())
        with attention.twice_differentiable(needed=True):
            loss = closure({**weights, **moved})
            slopes = flat(torch.autograd.grad(loss.sum(), leaves, create_graph=True), network)
        phi = flat(leaves, network).detach()
        theta = flat([weights[name] for name in moved], network)
        zero = phi - theta + slopes / self.strength

        def product(vector: Tensor) -> Tensor:
            """From v to (I + H / strength) v."""
            curved = torch.autograd.grad(
                slopes, leaves, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return vector + flat(curved, network) / self.strength

        def solve(vector: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "the meta-gradient of ImplicitMAML has no derivative; use MAML for that"
                )
            return conjugate_gradients(product, vector, self.solver_steps, tolerance=0.0)

        zero.register_hook(solve)  # the backward pass multiplies by the inverse here
        phi = phi - (zero - zero.detach())
        sizes = [leaf.numel() // (network.tasks or 1) for leaf in leaves]
        parts = zip(moved, phi.split(sizes, -1), strict=True)
        return {name: part.reshape(moved[name].shape) for name, part in parts}


def flat(tensors: Iterable[Tensor], network: Functional) -> Tensor:
    """Tensors of a task as one vector (values,), or of a stack as (tasks, values)."""
    lead = () if network.tasks is None else (network.tasks,)
    return torch.cat([tensor.reshape(*lead, -1) for tensor in tensors], -1)
