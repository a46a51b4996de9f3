"""Gradient descent as a module."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import descent, update_module


class DifferentiableSGD(nn.Module):
    """Replaces every weight of a module by `weight - lr * gradient`, in place and differentiably.

    Args:
        lr: the rate.

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
            module: the module to change.
            gradients: one for each of `module.parameters()`, None for one that does not move; by
                default the parameters' `.grad`.
        """
        if gradients is None:
            gradients = [parameter.grad for parameter in module.parameters()]
        update_module(module, [descent(self.lr, gradient) for gradient in gradients])


__getattr__ = nearest(__name__, ["DifferentiableSGD"])
