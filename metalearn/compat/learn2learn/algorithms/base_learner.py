"""The base of learn2learn's learners: the wrapped module, and one step of its weights."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import replace
from metalearn.engine.attention import attention
from metalearn.engine.inner_loop import Rates, Weights, sgd
from metalearn.kernels.conv_cpu import Convolutions

Value = TypeVar("Value")


class BaseLearner(nn.Module):
    """A module around another, to which it passes calls and unknown attributes."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module: Any = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        # Attention chooses its kernel in the forward pass, and only one of its kernels can be
        # differentiated twice.
        twice = torch.is_grad_enabled() and self._differentiates_twice()
        with attention.twice_differentiable(needed=twice), Convolutions():
            return self.module(*args, **kwargs)

    def _differentiates_twice(self) -> bool:
        """Whether the gradient of an inner step is differentiated again."""
        # A subclass without the attribute may do so.
        return not self.__dict__.get("first_order", False)


def value_or(value: Value | None, default: Value) -> Value:
    """An argument, or its default if it is None."""
    return default if value is None else value


def gradients_of(
    loss: Tensor, moving: Weights, *, first_order: bool, allow_unused: bool
) -> Weights:
    """The gradient of the loss by each weight that it depends on.

    Args:
        loss: a scalar.
        moving: weights by name.
        first_order: whether the gradients are constants.
        allow_unused: whether the loss may be independent of a weight, which has no gradient then.

    Raises:
        RuntimeError: for a weight that requires no gradient, or that the loss does not depend on.
    """
    refuse_frozen([name for name, weight in moving.items() if not weight.requires_grad])
    # Unused weights are always allowed here, to name them in the error below.
    computed = torch.autograd.grad(
        loss,
        list(moving.values()),
        retain_graph=not first_order,
        create_graph=not first_order,
        allow_unused=True,
    )
    gradients = dict(zip(moving, computed, strict=True))
    if not allow_unused:
        refuse_unused([name for name, gradient in gradients.items() if gradient is None])
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def refuse_frozen(names: list[str]) -> None:
    """Raise RuntimeError for parameters that require no gradient, if there are any."""
    if names:
        raise RuntimeError(
            f"{_first(names)} of the adapted module requires no gradient; leave it out with"
            " allow_nograd=True"
        )


def refuse_unused(names: list[str]) -> None:
    """Raise RuntimeError for parameters that the loss does not depend on, if there are any."""
    if names:
        raise RuntimeError(
            f"the loss does not depend on {_first(names)} of the adapted module; leave it out with"
            " allow_unused=True"
        )


def move(module: nn.Module, weights: Weights, gradients: Weights, rates: Rates) -> None:
    """Replace the module's weights by `weight - rate * gradient`, in place and differentiably.

    Args:
        module: the module.
        weights: its weights by name.
        gradients: those of the weights that move.
        rates: by name.
    """
    moving = {name: weights[name] for name in gradients}
    # The script computed the loss, so there is no closure that computes it anew.
    moved, _ = sgd(moving, gradients, rates, None)
    replace(module, [(moving[name], moved[name]) for name in moving])


def _first(names: list[str]) -> str:
    """The first name, and the number of the others."""
    if len(names) == 1:
        return names[0]
    return f"{names[0]} (and {len(names) - 1} more)"


__getattr__ = nearest(__name__, ["BaseLearner"])
