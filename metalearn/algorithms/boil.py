"""BOIL: body only update in the inner loop. The head stays, so the features must move."""

from __future__ import annotations

from collections.abc import Mapping

from metalearn.network.layers import assign, is_inside

from .maml import MAML
from .rates import LR, Rate


class BOIL(MAML):
    """MAML whose inner loop moves everything but the head (Oh, Yoo, Kim and Yun, ICLR 2021).

        theta_body <- theta_body - lr * grad_{theta_body} L_support

    The outer loop trains both. It is the mirror image of ANIL. The paper takes one step of rate 0.5
    (Conv4) or 0.3 (ResNet-12), on a mean loss.

    The arguments are those of `MAML`.

    Raises:
        ValueError: a mapping reaches into the head; or, at the first run, the model's output is not
            a function of the head's output.

    Example:
        >>> import torch
        >>> from metalearn import Examples
        >>> from metalearn.models import MLP
        >>> model = MLP(4, 2)
        >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
        >>> BOIL(model, lr=0.1).adapt(support).weights["head.weight"] is model.head.weight
        True
    """

    computes_only = True
    takes_padding = True
    needs_head = True

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter outside the head."""
        # A parameter of the body that is tied to one of the head stays with it.
        tied = assign(self.model, {self.head: True})
        return {name: rate for name, rate in super().rates_of(lr).items() if name not in tied}

    def paths_of(self, lr: LR) -> Mapping[str, Rate]:
        """The inner rate by module or parameter path; none that reaches the head alone."""
        paths = super().paths_of(lr)
        for path in paths:
            reached = assign(self.model, {path: True})
            if path and all(is_inside(name, self.head) for name in reached):
                raise ValueError(
                    f"BOIL leaves its head {self.head!r} as it is, but lr gives a rate to"
                    f" {path!r}; use MAML for that"
                )
        return paths
