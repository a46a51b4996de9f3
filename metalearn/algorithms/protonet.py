"""Prototypical networks: the baseline that everyone compares with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metalearn.engine.labels import check_classes
from metalearn.episodes import Examples

from .features import FeatureLearner


class ProtoNet(FeatureLearner):
    """Prototypical networks (Snell, Swersky and Zemel, NeurIPS 2017, equations 1 and 2): `logit_k =
    -|f(x) - c_k|^2`.

    `c_k` is the mean feature of the support examples of class k. There is no inner loop, and the
    head is not used. Any number of ways.

    Arguments are those of `Learner`; the features are what enters the head, or the output of a
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
        """Features of support and queries -> minus the squared distances to the prototypes
        (queries, ways).
        """
        check_classes(support.targets, ways)
        members = F.one_hot(support.targets.long(), ways).to(queries.dtype)
        prototypes = members.mT @ support.inputs / members.sum(-2).unsqueeze(-1)
        return -(queries.unsqueeze(-2) - prototypes.unsqueeze(-3)).square().sum(-1)
