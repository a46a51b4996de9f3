"""Meta-SGD under learn2learn's name (Li et al. 2017)."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import (
    clone_module,
    clone_parameters,
    descent,
    update_module,
)

from .base_learner import BaseLearner, gradients_of, move, value_or


class MetaSGD(BaseLearner):
    """learn2learn's Meta-SGD (Li et al. 2017): MAML with a learned rate for every weight.

    Args:
        model: any module.
        lr: the initial value of every rate.
        first_order: drop the second derivatives.
        lrs: the rates, one tensor for each of `model.parameters()`, instead of new ones.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        first_order: bool = False,
        lrs: nn.ParameterList | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        if lrs is None:
            # A rate for every single weight, in the order of `model.parameters()`.
            rates = [torch.full_like(parameter, lr) for parameter in model.parameters()]
            lrs = nn.ParameterList(map(nn.Parameter, rates))
        self.lrs = lrs
        self.first_order = first_order

    def clone(self) -> MetaSGD:
        """The same learner on clones of module and rates, with gradients to this one's."""
        return MetaSGD(
            clone_module(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order
        )

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """Take one inner step, each weight at its own rate, in place.

        Args:
            loss: the loss of this learner, a clone, on the support set.
            first_order: as for the learner, whose value is the default.

        Raises:
            RuntimeError: for a parameter without a gradient.
        """
        weights = dict(self.module.named_parameters())
        gradients = gradients_of(
            loss,
            weights,
            first_order=value_or(first_order, self.first_order),
            allow_unused=False,
        )
        move(self.module, weights, gradients, dict(zip(weights, self.lrs, strict=True)))


def meta_sgd_update(
    model: nn.Module, lrs: Iterable[Tensor], grads: Iterable[Tensor | None]
) -> nn.Module:
    """As `maml_update`, with a rate for each of `model.parameters()`."""
    pairs = zip(lrs, grads, strict=True)
    return update_module(model, [descent(rate, gradient) for rate, gradient in pairs])


__getattr__ = nearest(__name__, ["MetaSGD", "meta_sgd_update"])
