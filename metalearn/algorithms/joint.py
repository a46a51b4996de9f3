"""One head for all classes or tasks, trained without an inner loop."""

from __future__ import annotations

from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples
from metalearn.network.functional import Functional

from .base import Learner


class JointTraining(Learner):
    """No inner loop: one head answers the queries of every task, and all tasks are trained at once.

    Outer loop: minimise the mean over tasks of `L_query(theta)`. The support set is not used. On
    few-shot tasks this is the paper's multitask training. Classes have other labels in every task,
    so a common head has little to learn.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner = JointTraining(MLP(4, 2))
        >>> task = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> logits = learner.predict(learner.adapt(task), task.inputs)
        >>> torch.equal(logits, learner.model(task.inputs))
        True
    """

    computes_only = True

    def solve(self, network: Functional, support: Examples) -> Adapted:
        """The weights as they are."""
        return Adapted(network.weights())
