"""MAML under learn2learn's name (Finn et al. 2017)."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import clone_module, descent, update_module

from .base_learner import BaseLearner, gradients_of, move, value_or


class MAML(BaseLearner):
    """learn2learn's MAML (Finn et al. 2017).

    For each task `clone()` a learner, `adapt(loss)` it and call it; `backward()` of its loss gives
    gradients to this one's weights.

    Args:
        model: any module; one with running statistics is accepted.
        lr: the inner rate.
        first_order: drop the second derivatives.
        allow_unused: leave a parameter unchanged if the loss does not depend on it; by default as
            `allow_nograd`.
        allow_nograd: leave parameters that require no gradient unchanged.

    Example:
        >>> import torch
        >>> maml = MAML(nn.Linear(2, 1), lr=0.1)
        >>> learner = maml.clone()
        >>> learner.adapt(learner(torch.ones(1, 2)).square().mean())
        >>> learner(torch.ones(1, 2)).square().mean().backward()
        >>> maml.weight.grad.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        lr: Any,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__(model)
        self.lr = lr
        self.first_order = first_order
        self.allow_nograd = allow_nograd
        self.allow_unused = value_or(allow_unused, allow_nograd)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """The same learner on a clone of the module, with gradients to this one's weights."""
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=value_or(first_order, self.first_order),
            allow_unused=value_or(allow_unused, self.allow_unused),
            allow_nograd=value_or(allow_nograd, self.allow_nograd),
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Take one inner step, `weight - lr * gradient of the loss`, in place.

        Args:
            loss: the loss of this learner, a clone, on the support set.
            first_order: as for the learner, whose value is the default.
            allow_unused: likewise.
            allow_nograd: likewise.

        Raises:
            RuntimeError: for a parameter without a gradient, unless that is allowed.
        """
        allow_nograd = value_or(allow_nograd, self.allow_nograd)
        # Named parameters list a tied weight once.
        moving = {
            name: weight
            for name, weight in self.module.named_parameters()
            if weight.requires_grad or not allow_nograd
        }
        gradients = gradients_of(
            loss,
            moving,
            first_order=value_or(first_order, self.first_order),
            allow_unused=value_or(allow_unused, self.allow_unused),
        )
        move(self.module, moving, gradients, dict.fromkeys(moving, self.lr))


def maml_update(
    model: nn.Module, lr: Any, grads: Iterable[Tensor | None] | None = None
) -> nn.Module:
    """Replace every weight by `weight - lr * gradient`, in place and differentiably.

    Args:
        model: the module.
        lr: the rate.
        grads: one for each of `model.parameters()`, None for one that does not move. Without them
            each parameter moves by its attribute `update` (see `update_module`).

    Returns:
        The same module.
    """
    if grads is None:
        return update_module(model)
    return update_module(model, [descent(lr, gradient) for gradient in grads])


__getattr__ = nearest(__name__, ["MAML", "maml_update"])
