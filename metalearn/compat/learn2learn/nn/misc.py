"""The small modules of learn2learn's models and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.compat.learn2learn._missing import nearest

Module = TypeVar("Module", bound=torch.nn.Module)


class Lambda(torch.nn.Module):
    """A function as a module."""

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.lmb(*args, **kwargs)


class Flatten(torch.nn.Module):
    """The features of each example in one row."""

    def forward(self, x: Tensor) -> Tensor:
        """(examples, ...) -> (examples, features)."""
        return x.flatten(1)


class Scale(torch.nn.Module):
    """Multiplies by a trained factor, one for each value or any shape that broadcasts.

    Args:
        shape: of the factors; by default a single one.
        alpha: their initial value.

    Example:
        >>> Scale(3, alpha=0.5)(torch.ones(3)).tolist()
        [0.5, 0.5, 0.5]
    """

    def __init__(self, shape: int | Sequence[int] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        size = 1 if shape is None else shape
        self.alpha = torch.nn.Parameter(torch.ones(size) * alpha)

    def forward(self, x: Tensor) -> Tensor:
        """The input times the factors."""
        return x * self.alpha


def freeze(module: Module) -> Module:
    """Let no parameter of a module require a gradient, in place, and return the module.

    Parameters of a clone are also detached from their history.

    Example:
        >>> freeze(torch.nn.Linear(2, 1)).weight.requires_grad
        False
    """
    for parameter in module.parameters():
        parameter.detach_().requires_grad = False
    return module


def unfreeze(module: Module) -> Module:
    """Let every parameter of a module require a gradient, in place, and return the module.

    Example:
        >>> unfreeze(freeze(torch.nn.Linear(2, 1))).weight.requires_grad
        True
    """
    for parameter in module.parameters():
        parameter.requires_grad_()
    return module


__getattr__ = nearest(__name__, ["Flatten", "Lambda", "Scale", "freeze", "unfreeze"])
