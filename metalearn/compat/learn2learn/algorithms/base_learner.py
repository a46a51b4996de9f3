"""What the learners of learn2learn's names share: the wrapped module, and one step of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import replace
from metalearn.engine.attention import attention
from metalearn.engine.inner_loop import Rates, Weights, sgd
from metalearn.kernels.conv_cpu import Convolutions


class BaseLearner(nn.Module):
    """A module around another that answers calls, and attributes that are not its own, with it."""

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
        """What the module gives."""
        # The choice of attention's kernel is made in the forward pass: only one of them can be
        # differentiated twice.
        twice = torch.is_grad_enabled() and self._differentiates_twice()
        with attention.twice_differentiable(needed=twice), Convolutions():
            return self.module(*args, **kwargs)

    def _differentiates_twice(self) -> bool:
        """Whether the gradient of an inner step may be differentiated; a subclass that does not say
        so may.
        """
        return not self.__dict__.get("first_order", False)


def gradients_of(loss: Tensor, moving: Weights, first_order: bool, allow_unused: bool) -> Weights:
    """The gradient of the loss by each weight that it depends on.

    Raises RuntimeError for a weight that requires no gradient, or that the loss does not depend on.
    """
    frozen = [name for name, weight in moving.items() if not weight.requires_grad]
    refuse_frozen(frozen)
    computed = torch.autograd.grad(
        loss,
        list(moving.values()),
        retain_graph=not first_order,
        create_graph=not first_order,
        allow_unused=True,
    )
    gradients = dict(zip(moving, computed, strict=True))
    unused = [name for name, gradient in gradients.items() if gradient is None]
    if not allow_unused:
        refuse_unused(unused)
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
    """Replace the module's weights by `weight - rate * gradient`, in place and differentiably."""
    moving = {name: weights[name] for name in gradients}
    # The script has computed the loss, so there is no closure for `inner_step` to call.
    moved, _ = sgd(moving, gradients, rates, None)
    replace(module, [(moving[name], moved[name]) for name in moving])


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


__getattr__ = nearest(__name__, ["BaseLearner"])
