"""Meta-SGD: MAML that learns how fast every single weight moves."""

from __future__ import annotations

from torch import Tensor, full_like, nn

from .maml import MAML
from .rates import LR, Rate


class MetaSGD(MAML):
    """MAML with a learned inner rate for every weight (Li, Zhou, Chen and Li, 2017).

        phi = theta - alpha * grad L_support(theta)

    `alpha` has the shape of `theta` and is trained beside it by the outer loop; it may turn
    negative. It starts from `lr` everywhere (the paper draws it from U[0.005, 0.1]), so before
    training Meta-SGD is MAML. The paper takes one step.

    The arguments are those of `MAML`.

    Example:
        >>> from metalearn.models import MLP
        >>> len(list(MetaSGD(MLP(1, 1), lr=0.01).parameters()))
        12
    """

    computes_only = True
    takes_padding = True

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """A learned rate for every weight that moves."""
        weights = dict(self.model.named_parameters())
        return {name: _learned(rate, weights[name]) for name, rate in super().rates_of(lr).items()}


def _learned(rate: Rate, weight: Tensor) -> nn.Parameter:
    """A rate to learn for every entry of a weight."""
    # alpha has the shape of theta, so each entry learns its own rate.
    if isinstance(rate, Tensor):
        return nn.Parameter(rate.detach().to(weight).expand_as(weight).clone())
    return nn.Parameter(full_like(weight, rate))
