"""ANIL: almost no inner loop. Only the head adapts."""

from __future__ import annotations

from collections.abc import Mapping

from ..episodes import Examples
from ..layers import is_inside
from ..learner import Adapted
from .maml import LR, MAML, Rate


class ANIL(MAML):
    """MAML whose inner loop moves the head alone (Raghu, Raghu, Bengio and Vinyals, ICLR 2020, section 4).

    `theta_m = (theta_1, ..., theta_{l-1}, theta_l^{m-1} - lr * grad_{theta_l} L_support)`, in training and at test; the outer loop
    trains everything. The same numbers as `MAML(model, lr={head: rate})`, but the body runs once a task instead of once a step. (Where the
    model goes on after its head, as SqueezeNet pools, the whole model has to run at each step. A body that reads the head's weight without
    calling the head cannot be told from one that does not: use `MAML` for it.)

    Arguments are those of `MAML`. Raises ValueError for a mapping that reaches outside the head.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> model = MLP(4, 2)
        >>> adapted = ANIL(model, lr=0.1).adapt(Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3)))
        >>> [name for name, weight in model.named_parameters() if adapted.weights[name] is not weight]
        ['head.weight', 'head.bias']
    """

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter of the head."""
        if not isinstance(lr, Mapping):
            return super().rates_of({self.head: lr})
        outside = [path for path in lr if not is_inside(path, self.head)]
        if outside:
            raise ValueError(f"ANIL adapts its head {self.head!r} alone, but lr gives a rate to {outside[0]!r}; use MAML for that")
        return super().rates_of(lr)

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> weights whose head is adapted to it."""
        self.check_outputs(support)
        features, ends_in_head = self.features(self.weights(), support.inputs)
        if not ends_in_head or any(not is_inside(name, self.head) for name in self.rates):
            return super().adapt(support)
        return Adapted(self.descend(lambda weights: self.task_loss(self.call_head(weights, features), support.targets)))
