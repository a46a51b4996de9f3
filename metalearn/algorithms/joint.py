"""One head for all classes or tasks, trained without an inner loop."""

from __future__ import annotations

from metalearn.algorithms.base import Adapted, Learner
from metalearn.episodes import Examples
from metalearn.network.functional import Functional


class JointTraining(Learner):
    """No inner loop: the head as it stands answers the queries of every task, so that all tasks are
    trained at once.

    Outer loop: minimise the mean over tasks of `L_query(theta)`. The support set is not used. On
    few-shot tasks this is the paper's
    multitask training: classes get other labels in every task, so that a common head has little to
    learn.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner, task = JointTraining(MLP(4, 2)), Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> torch.equal(learner.predict(learner.adapt(task), task.inputs), learner.model(task.inputs))
        True
    """

    computes_only = True

    def solve(self, network: Functional, support: Examples) -> Adapted:
        """The weights as they are."""
        return Adapted(network.weights())
