"""Prototypical networks: the baseline that everyone compares with."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.episodes import Examples

from .features import FeatureLearner, class_means
from .losses import Loss


class ProtoNet(FeatureLearner):
    """Prototypical networks (Snell, Swersky and Zemel, NeurIPS 2017, equations 1 and 2).

        logit_k = -|f(x) - c_k|^2

    with `c_k` the mean feature of the support examples of class k. There is no inner loop, the head
    is not used, and tasks may have any number of ways.

    The features are what enters the head, or the output of a model without one.

    Args:
        model: any module with one tensor in and one out; its head is not used.
        normalised: divide every prototype by its length, in training and at test (Bouniot et al.
            2022, arXiv:2010.01992): the norms of the tasks' predictors are then bounded. Queries
            keep their length.
        head: as for `Learner`.
        loss: as for `Learner`.
        execution: as for `Learner`.
        output: as for `Learner`.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> net = ProtoNet(MLP(4, 2))
        >>> inputs = torch.eye(4)[:3]
        >>> net.predict(net.adapt(Examples(inputs, torch.arange(3))), inputs).argmax(-1)
        tensor([0, 1, 2])
    """

    computes_only = True
    takes_padding = True

    def __init__(
        self,
        model: nn.Module,
        *,
        normalised: bool = False,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        self.normalised = normalised

    def check_normalised(self, normalised: object) -> bool:
        """Whether prototypes are divided by their length, if it is True or False."""
        if not isinstance(normalised, bool):
            raise TypeError(
                f"normalised={normalised!r} is a {type(normalised).__name__}; give True or False"
            )
        return normalised

    def prototypes(self, support: Examples, ways: int) -> Tensor:
        """The prototype of every class (..., ways, features)."""
        means = class_means(support, ways)
        return F.normalize(means, dim=-1) if self.normalised else means

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Minus the squared distances of queries to the prototypes (..., queries, ways)."""
        prototypes = self.prototypes(support, ways)  # (..., ways, features)
        # (..., queries, 1, features) - (..., 1, ways, features)
        differences = queries.unsqueeze(-2) - prototypes.unsqueeze(-3)
        return -differences.square().sum(-1)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        if not self.normalised:
            return super().settings()
        # Recorded if it is set: checkpoints of runs without it stay readable.
        return {**super().settings(), "normalised": True}
