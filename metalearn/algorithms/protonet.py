"""Prototypical networks: the baseline that everyone compares with."""

from __future__ import annotations

from torch import Tensor

from metalearn.episodes import Examples

from .features import FeatureLearner, class_means


class ProtoNet(FeatureLearner):
    """Prototypical networks (Snell, Swersky and Zemel, NeurIPS 2017, equations 1 and 2).

        logit_k = -|f(x) - c_k|^2

    with `c_k` the mean feature of the support examples of class k. There is no inner loop, the head
    is not used, and tasks may have any number of ways.

    The arguments are those of `Learner`. The features are what enters the head, or the output of a
    model without one.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> net = ProtoNet(MLP(4, 2))
        >>> inputs = torch.eye(4)[:3]
        >>> net.predict(net.adapt(Examples(inputs, torch.arange(3))), inputs).argmax(-1)
        tensor([0, 1, 2])
    """

    computes_only = True

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Minus the squared distances of queries to the prototypes (..., queries, ways)."""
        prototypes = class_means(support, ways)  # (..., ways, features)
        # (..., queries, 1, features) - (..., 1, ways, features)
        differences = queries.unsqueeze(-2) - prototypes.unsqueeze(-3)
        return -differences.square().sum(-1)
