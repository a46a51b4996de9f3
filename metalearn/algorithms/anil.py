"""ANIL: almost no inner loop. Only the head adapts."""

from __future__ import annotations

from collections.abc import Mapping

from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside, reach

from .base import explained
from .maml import MAML
from .rates import LR, Rate


class ANIL(MAML):
    """MAML whose inner loop moves the head alone (Raghu et al., ICLR 2020, section 4).

        theta_m = (theta_1, ..., theta_{l-1}, theta_l^{m-1} - lr * grad_{theta_l} L_support)

    in training and at test. The outer loop trains everything. The numbers are those of `MAML(model,
    lr={head: rate})`, but the body runs once a task instead of once a step. If the model goes on
    after its head, as SqueezeNet pools, the whole model runs at each step. Use `MAML` for a body
    that reads the head's weight without calling the head.

    The arguments are those of `MAML`. A number is the rate of the head by name, so it moves a head
    that is frozen as a whole.

    Raises:
        ValueError: a mapping reaches outside the head; or, at the first run, the model's output is
            not a function of the head's output.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> model = MLP(4, 2)
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> adapted = ANIL(model, lr=0.1).adapt(support).weights
        >>> [name for name, weight in model.named_parameters() if adapted[name] is not weight]
        ['head.weight', 'head.bias']
    """

    computes_only = True
    takes_padding = True
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
        """The parameters of the head that stay because they have `requires_grad=False`."""
        if isinstance(self.lr, Mapping):
            return super().frozen_names()
        fixed = {name for name in self.assigned if not self.model.get_parameter(name).requires_grad}
        # A number is the rate of the head by name: a head that is frozen as a whole adapts. The
        # frozen part of a head that trains (LoRA) stays.
        if fixed == self.assigned.keys():
            return set()
        return fixed

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> weights whose head is adapted to it."""
        self.check_support(network, support)
        features = network.features(network.weights(self.rates), support.inputs)
        reaches_body = any(not is_inside(name, self.head) for name in self.rates)
        if reaches_body or not features.ends_in_head:
            return super().solve(network, support)
        return self.fit(
            network, support, lambda weights: network.call_head(weights, features.values)
        )
