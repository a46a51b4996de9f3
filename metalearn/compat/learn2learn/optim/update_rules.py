"""Gradient descent as a module."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import update_module


class DifferentiableSGD(nn.Module):
    """Replaces every weight of a module by `weight - lr * gradient`, in place and differentiably.

    Args:
        lr: The rate.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> DifferentiableSGD(1.0)(net, [net.weight])
        >>> net.weight.tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Iterable[Tensor | None] | None = None) -> None:
        """Take the step.

        Args:
            module: The module to change.
            gradients: One for each of `module.parameters()`, None for one that stays; the
                parameters' `.grad` if left out.
        """
        if gradients is None:
            gradients = [parameter.grad for parameter in module.parameters()]
        update_module(module, [None if g is None else g.mul(-self.lr) for g in gradients])


__getattr__ = nearest(__name__, ["DifferentiableSGD"])
