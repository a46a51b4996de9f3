"""MAML: an initialisation that a few gradient steps on a support set adapt to a task."""

from __future__ import annotations

from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples
from metalearn.network.functional import Functional

from .base import explained
from .gradient_learner import GradientLearner


class MAML(GradientLearner):
    """Model-agnostic meta-learning (Finn, Abbeel and Levine, ICML 2017, algorithm 2).

    Inner loop, `steps` times on the support set, from `phi = theta`:

        phi <- phi - lr * grad L_support(phi)

    Outer loop: minimise the mean over tasks of `L_query(phi)` over `theta`, differentiating through
    the inner loop.

    Args:
        model: any module with one tensor in and one out.
        lr: the inner rate: a number, or `{module or parameter path: rate}`. The longest path wins,
            wildcards such as `*lora_*` are allowed, and a parameter without a rate does not move.
            Nor does one with `requires_grad=False`, unless a path names it (not "", and no
            wildcard). The outer loop learns a rate that is an `nn.Parameter`. The inner loss is a
            mean: for a paper that sums over the ways, multiply its rate by their number.
        steps: inner steps.
        first_order: drop the second derivatives (FOMAML): the gradient is that of the query loss at
            the adapted weights.
        head: as for `Learner`.
        loss: as for `Learner`.
        update: the inner update: "sgd", "momentum" or "adam" (see `metalearn.engine.inner_loop`),
            or a function of that form.
        execution: as for `Learner`.
        output: as for `Learner`.

    Every argument except the model can be set later. It is checked again and takes effect.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner = MAML(MLP(4, 2), lr={"": 0.1, "head": 0.5})
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> learner.adapt(support).weights["head.bias"].shape
        torch.Size([2])
    """

    computes_only = True
    takes_padding = True

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> adapted weights, differentiable to the initial ones."""
        if self.needs_head and self.guessed:
            self.settle_head(network.first_task(support.inputs))
        return self.fit(network, support, lambda weights: network(weights, support.inputs))
