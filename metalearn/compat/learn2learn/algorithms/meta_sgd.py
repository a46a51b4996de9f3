"""Meta-SGD by learn2learn's name (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import clone_module, clone_parameters, update_module

from .base_learner import BaseLearner, gradients_of, move


class MetaSGD(BaseLearner):
    """learn2learn's Meta-SGD (Li et al. 2017): MAML with a learned rate for every single weight, in
    `lrs`.

    Arguments:
        model: any module.
        lr: what every rate starts from.
        first_order: drop the second derivatives.
        lrs: the rates, one tensor for each of `model.parameters()`, in place of fresh ones.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        first_order: bool = False,
        lrs: nn.ParameterList | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        self.lrs = (
            nn.ParameterList([nn.Parameter(torch.full_like(p, lr)) for p in model.parameters()])
            if lrs is None
            else lrs
        )
        self.first_order = first_order

    def clone(self) -> MetaSGD:
        """The same learner on clones of module and rates, whose gradients go back to this one's."""
        return MetaSGD(
            clone_module(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order
        )

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """One inner step, in place, each weight at its own rate.

        Raises RuntimeError naming a parameter without a gradient.
        """
        weights = dict(self.module.named_parameters())
        gradients = gradients_of(
            loss, weights, self.first_order if first_order is None else first_order, False
        )
        move(self.module, weights, gradients, dict(zip(weights, self.lrs, strict=True)))


def meta_sgd_update(
    model: nn.Module, lrs: Iterable[Tensor], grads: Iterable[Tensor | None]
) -> nn.Module:
    """`maml_update` with a rate for each of `model.parameters()`."""
    return update_module(
        model, [None if g is None else -lr * g for lr, g in zip(lrs, grads, strict=True)]
    )


__getattr__ = nearest(__name__, ["MetaSGD", "meta_sgd_update"])
