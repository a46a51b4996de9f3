"""ANIL: almost no inner loop. Only the head adapts."""

from __future__ import annotations

from collections.abc import Mapping

from metalearn.algorithms.base import ends_in_head
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside, reach

from .base import Adapted, explained
from .maml import LR, MAML, Rate


class ANIL(MAML):
    """MAML whose inner loop moves the head alone (Raghu, Raghu, Bengio and Vinyals, ICLR 2020,
    section 4).

    `theta_m = (theta_1, ..., theta_{l-1}, theta_l^{m-1} - lr * grad_{theta_l} L_support)`, in
    training and at test; the outer loop trains everything. The same numbers as `MAML(model,
    lr={head: rate})`, but the body runs once a task instead of once a step. (Where the model goes
    on after its head, as SqueezeNet pools, the whole model has to run at each step. A body that
    reads the head's weight without calling the head cannot be told from one that does not: use
    `MAML` for it.)

    Arguments are those of `MAML`. A number is the rate of the head by name: it moves a head that is
    frozen as a whole. Raises ValueError for a mapping that reaches outside the head, and at the
    first run if the model's output is not what its head makes of its inputs.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> model = MLP(4, 2)
        >>> adapted = ANIL(model, lr=0.1).adapt(Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3)))
        >>> [name for name, weight in model.named_parameters() if adapted.weights[name] is not weight]
        ['head.weight', 'head.bias']
    """

    computes_only = True
    needs_head = True

    def paths_of(self, lr: LR) -> Mapping[str, Rate]:
        """The inner rate by module or parameter path, all of them in the head."""
        if not isinstance(lr, Mapping):
            return {self.head: lr}
        for reached in reach(self.model, lr).values():
            outside = [path for name, path in reached if not is_inside(name, self.head)]
            if outside:
                raise ValueError(
                    f"ANIL adapts its head {self.head!r} alone, but lr gives a rate to"
                    f" {outside[0]!r}; use MAML for that"
                )
        return lr

    def frozen_names(self) -> set[str]:
        """The parameters of the head that stay, because they have `requires_grad=False`."""
        if isinstance(self.lr, Mapping):
            return super().frozen_names()
        # A number is the rate of the head by name: frozen as a whole it adapts; the frozen part of
        # one that trains (LoRA) stays.
        fixed = {name for name in self.assigned if not self.model.get_parameter(name).requires_grad}
        return set() if fixed == self.assigned.keys() else fixed

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> weights whose head is adapted to it."""
        self.check_support(network, support)
        features = network.features(network.weights(self.rates), support.inputs)
        reaches_body = any(not is_inside(name, self.head) for name in self.rates)
        if reaches_body or not ends_in_head(features):
            return super().solve(network, support)
        return self.fit(
            network, support, lambda weights: network.call_head(weights, features.values)
        )
