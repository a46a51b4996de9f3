"""GBML: meta-learning whose inner update is a trained function of the gradient."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.optim.parameter_update import ParameterUpdate
from metalearn.compat.learn2learn.optim.update_rules import DifferentiableSGD
from metalearn.compat.learn2learn.utils import clone_module

from .base_learner import BaseLearner, refuse_frozen, refuse_unused, value_or


class GBML(BaseLearner):
    """MAML with a module between a gradient and its step: `weight - lr * transform(gradient)`.

    The outer loop trains the model and the transforms; `parameters()` has both. `Scale` as the
    transform is Meta-SGD, `MetaCurvatureTransform` is meta-curvature (Park and Oliva 2019), and
    `KroneckerTransform` a Kronecker-factored update (Arnold et al. 2019).

    Args:
        module: any module.
        transform: called with each parameter; returns the module that transforms its gradients,
            or None to use them as they are.
        lr: the inner rate.
        adapt_transform: whether the inner loop also moves the transforms' own parameters, from its
            second step on.
        first_order: drop the second derivatives.
        allow_unused: leave a parameter unchanged if the loss does not depend on it.
        allow_nograd: leave parameters that require no gradient unchanged.
        compute_update: a `ParameterUpdate` to use instead of a new one.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> gbml = GBML(nn.Linear(2, 1), l2l.optim.MetaCurvatureTransform, lr=0.1)
        >>> learner = gbml.clone()
        >>> learner.adapt(learner(torch.ones(1, 2)).square().mean())
        >>> learner(torch.ones(1, 2)).square().mean().backward()
        >>> len([p for p in gbml.parameters() if p.grad is not None])
        5
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Callable[[Any], nn.Module | None],
        lr: float = 1.0,
        adapt_transform: bool = False,
        first_order: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
        compute_update: ParameterUpdate | None = None,
    ) -> None:
        super().__init__(module)
        self.transform = transform
        self.adapt_transform = adapt_transform
        self.lr = lr
        self.first_order = first_order
        self.allow_unused = allow_unused
        self.allow_nograd = allow_nograd
        if compute_update is None:
            compute_update = ParameterUpdate(module.parameters(), transform)
        self.compute_update = compute_update
        self.diff_sgd = DifferentiableSGD(lr)
        self._params_updated = False

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        adapt_transform: bool | None = None,
    ) -> GBML:
        """The same learner on clones of module and transforms, with gradients to this one's."""
        return GBML(
            clone_module(self.module),
            self.transform,
            lr=self.lr,
            adapt_transform=value_or(adapt_transform, self.adapt_transform),
            first_order=value_or(first_order, self.first_order),
            allow_unused=value_or(allow_unused, self.allow_unused),
            allow_nograd=value_or(allow_nograd, self.allow_nograd),
            compute_update=clone_module(self.compute_update),
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_nograd: bool | None = None,
        allow_unused: bool | None = None,
    ) -> None:
        """Take one inner step, in place.

        The transforms' own parameters move first, if `adapt_transform` is set and an earlier step
        made the loss depend on them.

        Args:
            loss: the loss of this learner on the support set.
            first_order: as for the learner, whose value is the default.
            allow_nograd: likewise.
            allow_unused: likewise.

        Raises:
            RuntimeError: for a parameter without a gradient, unless that is allowed.
        """
        second_order = not value_or(first_order, self.first_order)
        allow_unused = value_or(allow_unused, self.allow_unused)
        allow_nograd = value_or(allow_nograd, self.allow_nograd)
        weights = dict(self.module.named_parameters())
        if not allow_nograd:
            refuse_frozen([name for name, p in weights.items() if not p.requires_grad])
        # The first step has no earlier one that could train the transforms.
        of_transforms = list(self.compute_update.parameters())
        if self.adapt_transform and self._params_updated and of_transforms:
            gradients = torch.autograd.grad(
                loss,
                of_transforms,
                create_graph=second_order,
                retain_graph=True,  # the module's step goes through the same graph
                allow_unused=True,  # the transform of a parameter that did not move
            )
            self.diff_sgd(self.compute_update, gradients)
        updates = self.compute_update(
            loss,
            weights.values(),
            # A step on the transforms differentiates through this one.
            create_graph=second_order or self.adapt_transform,
            allow_unused=True,
            allow_nograd=allow_nograd,
        )
        if not allow_unused:
            named = zip(weights, updates, strict=True)
            unused = [name for name, update in named if update is None]
            refuse_unused([name for name in unused if weights[name].requires_grad])
        self.diff_sgd(self.module, updates)
        self._params_updated = True

    def _differentiates_twice(self) -> bool:
        return self.adapt_transform or not self.first_order


__getattr__ = nearest(__name__, ["GBML"])
