"""BOIL: body only update in the inner loop. The head stays, so the features must move."""

from __future__ import annotations

from collections.abc import Mapping

from ..layers import assign, is_inside
from .maml import LR, MAML, Rate


class BOIL(MAML):
    """MAML whose inner loop moves everything but the head (Oh, Yoo, Kim and Yun, ICLR 2021): ANIL's mirror image.

    `theta_body <- theta_body - lr * grad_{theta_body} L_support`; the outer loop trains both. The paper takes one step of rate 0.5 (Conv4)
    or 0.3 (ResNet-12), on a mean loss.

    Arguments are those of `MAML`. Raises ValueError for a mapping that reaches into the head.

    Example:
        >>> import torch
        >>> from metalearn import Examples
        >>> from metalearn.models import MLP
        >>> model = MLP(4, 2)
        >>> adapted = BOIL(model, lr=0.1).adapt(Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3)))
        >>> adapted.weights["head.weight"] is model.head.weight
        True
    """

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter outside the head."""
        tied = assign(self.model, {self.head: True})
        if not isinstance(lr, Mapping):
            return {name: rate for name, rate in super().rates_of(lr).items() if name not in tied}
        inside = [path for path in lr if is_inside(path, self.head)]
        if inside:
            raise ValueError(f"BOIL leaves its head {self.head!r} as it is, but lr gives a rate to {inside[0]!r}; use MAML for that")
        return {name: rate for name, rate in super().rates_of(lr).items() if name not in tied}
