"""An optimizer that the next loss trains: hypergradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import replace


class LearnableOptimizer(nn.Module):
    """Moves a model by `-lr * transform(gradient)`, differentiably to the transforms' parameters.

    The next `backward()` gives gradients to the model and, through the last step, to the
    transforms, which any torch optimizer of `parameters()` can train (Baydin et al. 2018).
    The model's weights become tensors with a history of one step.

    Args:
        model: the module to move, in place. It is not part of `parameters()`.
        transform: called with each parameter; returns the module that transforms its gradients,
            or None to use them as they are.
        lr: the rate.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> model = nn.Linear(2, 1)
        >>> optimizer = LearnableOptimizer(model, lambda p: l2l.nn.Scale(alpha=0.1))
        >>> outer = torch.optim.SGD(optimizer.parameters(), lr=0.01)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     outer.zero_grad()
        ...     model(torch.ones(1, 2)).square().sum().backward()
        ...     outer.step()
        ...     optimizer.step()
        >>> optimizer.transforms[0].alpha.item() != 0.1
        True
    """

    def __init__(
        self, model: nn.Module, transform: Callable[[Any], nn.Module | None], lr: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model must be an nn.Module, not a {type(model).__name__}")
        # In a dictionary the model is no submodule, and its weights no parameters of this.
        self.info = {"model": model}
        self.transforms = nn.ModuleList([transform(p) for p in model.parameters()])  # type: ignore[misc]
        self.lr = lr

    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient. Call `backward()` before; takes no closure."""
        if closure is not None:
            raise ValueError("step() takes no closure: call backward() on the loss, then step()")
        model = self.info["model"]
        pairs = []
        for parameter, transform in zip(model.parameters(), self.transforms, strict=True):
            # new weight = weight - lr * transform(gradient), where only the transform has a history
            gradient = _gradient(parameter)
            if gradient is not None:
                gradient = gradient.detach()
                update = gradient if transform is None else transform(gradient)
                pairs.append((parameter, parameter.detach() - self.lr * update))
        replace(model, pairs)
        # The new weights are no leaves, whose gradients torch would keep by itself.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.retain_grad()

    def zero_grad(self) -> None:  # type: ignore[override]
        """Set the model's gradients to zero; an optimizer of the transforms clears theirs."""
        for parameter in self.info["model"].parameters():
            if _gradient(parameter) is not None:
                parameter.grad = torch.zeros_like(parameter)


def _gradient(parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter, also of one with a history."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about `.grad` of a tensor with a history
        return parameter.grad


__getattr__ = nearest(__name__, ["LearnableOptimizer"])
