"""NIL: no inner loop. Labels come from how similar features are."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.episodes import Examples

from .features import RULES, FeatureLearner, cosine_scores
from .losses import Loss


class NIL(FeatureLearner):
    """No inner loop and no head (Raghu, Raghu, Bengio and Vinyals, ICLR 2020, section 5).

    Each query takes the labels of the support set, weighted by the cosines of their features. The
    features are what enters the head. Around a model that MAML or ANIL trained, NIL tests the body
    alone; trained itself, it is the paper's "NIL training". Tasks may have any number of ways.

    Args:
        model: any module with one tensor in and one out; its head is not used.
        rule: how cosines become labels: "softmax" (matching networks), "sum", or "class_mean"
            (BOIL's code). The paper says only that similarities weight the labels. The formulas are
            in `metalearn.algorithms.features.cosine_readout`. For one shot all three agree on the
            class.
        head: as for `Learner`; a model without one has its output for features.
        loss: as for `Learner`.
        execution: as for `Learner`.
        output: as for `Learner`.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> nil = NIL(MLP(4, 2))
        >>> inputs = torch.eye(4)[:3]
        >>> nil.predict(nil.adapt(Examples(inputs, torch.arange(3))), inputs).argmax(-1)
        tensor([0, 1, 2])
    """

    computes_only = True
    takes_padding = True

    def __init__(
        self,
        model: nn.Module,
        rule: str = "softmax",
        head: str | None = None,
        *,
        loss: Loss = F.cross_entropy,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        self.rule = rule

    def check_rule(self, rule: str) -> str:
        """How cosines become labels, if there is such a rule."""
        if rule not in RULES:
            raise ValueError(f"NIL has no rule {rule!r}; choose one of {', '.join(RULES)}")
        return rule

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Scores (..., queries, ways) from the cosines of queries and support examples."""
        return cosine_scores(support, queries, ways, self.rule)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {**super().settings(), "rule": self.rule}
