"""MAML by learn2learn's name (Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import clone_module, update_module

from .base_learner import BaseLearner, gradients_of, move


class MAML(BaseLearner):
    """learn2learn's MAML (Finn et al. 2017): `clone()` a task's own learner, `adapt(loss)` it, call
    it, `backward()` to this one.

    Arguments:
        model: any module; one with running statistics is accepted.
        lr: the inner rate.
        first_order: drop the second derivatives.
        allow_unused: leave a parameter that the loss does not depend on as it is; `allow_nograd` by
            default.
        allow_nograd: leave parameters that require no gradient as they are.

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
        self.lr, self.first_order, self.allow_nograd = lr, first_order, allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """The same learner on a clone of the module, whose gradients go back to this one's weights."""
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step, in place: every weight of the (cloned) module is replaced by `weight - lr
        * gradient of the loss`.

        Raises RuntimeError naming a parameter without a gradient, where that is not allowed.
        """
        first_order = self.first_order if first_order is None else first_order
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        moving = {
            name: weight
            for name, weight in self.module.named_parameters()
            if weight.requires_grad or not allow_nograd
        }
        gradients = gradients_of(
            loss, moving, first_order, self.allow_unused if allow_unused is None else allow_unused
        )
        move(self.module, moving, gradients, dict.fromkeys(moving, self.lr))


def maml_update(
    model: nn.Module, lr: Any, grads: Iterable[Tensor | None] | None = None
) -> nn.Module:
    """Replace every weight by `weight - lr * gradient`, in place and differentiably, and return the
    model.

    `grads` has one entry for each of `model.parameters()`, None for one that stays; without it see
    `update_module`.
    """
    return update_module(
        model, None if grads is None else [None if g is None else -lr * g for g in grads]
    )


__getattr__ = nearest(__name__, ["MAML", "maml_update"])
