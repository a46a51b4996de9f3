"""learn2learn's MAML and MetaSGD: a network, its clones, and gradient steps on a loss that the script has computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.inner_loop import Rates, Weights, attention, sgd
from metalearn.operations import Convolutions

from ._missing import nearest
from .utils import clone_module, clone_parameters, replace, update_module


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
        # The choice of attention's kernel is made in the forward pass: only one of them can be differentiated twice.
        with attention.twice_differentiable(torch.is_grad_enabled() and not getattr(self, "first_order", True)), Convolutions():
            return self.module(*args, **kwargs)


class MAML(BaseLearner):
    """learn2learn's MAML (Finn et al. 2017): `clone()` a task's own learner, `adapt(loss)` it, call it, `backward()` to this one.

    Arguments:
        model: any module; one with running statistics is accepted.
        lr: the inner rate.
        first_order: drop the second derivatives.
        allow_unused: leave a parameter that the loss does not depend on as it is; `allow_nograd` by default.
        allow_nograd: leave parameters that require no gradient as they are.

    Example:
        >>> maml = MAML(nn.Linear(2, 1), lr=0.1)
        >>> learner = maml.clone()
        >>> learner.adapt(learner(torch.ones(1, 2)).square().mean())
        >>> learner(torch.ones(1, 2)).square().mean().backward()
        >>> maml.weight.grad.shape
        torch.Size([1, 2])
    """

    def __init__(
        self, model: nn.Module, lr: Any, first_order: bool = False, allow_unused: bool | None = None, allow_nograd: bool = False
    ) -> None:
        super().__init__(model)
        self.lr, self.first_order, self.allow_nograd = lr, first_order, allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def clone(self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None) -> MAML:
        """The same learner on a clone of the module, whose gradients go back to this one's weights."""
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )

    def adapt(
        self, loss: Tensor, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> None:
        """One inner step, in place: every weight of the (cloned) module is replaced by `weight - lr * gradient of the loss`.

        Raises RuntimeError naming a parameter without a gradient, where that is not allowed.
        """
        first_order = self.first_order if first_order is None else first_order
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        moving = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad or not allow_nograd}
        gradients = _gradients(loss, moving, first_order, self.allow_unused if allow_unused is None else allow_unused)
        _step(self.module, moving, gradients, dict.fromkeys(moving, self.lr))


class MetaSGD(BaseLearner):
    """learn2learn's Meta-SGD (Li et al. 2017): MAML with a learned rate for every single weight, in `lrs`.

    Arguments:
        model: any module.
        lr: what every rate starts from.
        first_order: drop the second derivatives.
        lrs: the rates, one tensor for each of `model.parameters()`, in place of fresh ones.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1.0, first_order: bool = False, lrs: nn.ParameterList | Sequence[Tensor] | None = None
    ) -> None:
        super().__init__(model)
        self.lrs = nn.ParameterList([nn.Parameter(torch.full_like(p, lr)) for p in model.parameters()]) if lrs is None else lrs
        self.first_order = first_order

    def clone(self) -> MetaSGD:
        """The same learner on clones of module and rates, whose gradients go back to this one's."""
        return MetaSGD(clone_module(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order)

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """One inner step, in place, each weight at its own rate. Raises RuntimeError naming a parameter without a gradient."""
        weights = dict(self.module.named_parameters())
        gradients = _gradients(loss, weights, self.first_order if first_order is None else first_order, False)
        _step(self.module, weights, gradients, dict(zip(weights, self.lrs, strict=True)))


def maml_update(model: nn.Module, lr: Any, grads: Iterable[Tensor | None] | None = None) -> nn.Module:
    """Replace every weight by `weight - lr * gradient`, in place and differentiably, and return the model.

    `grads` has one entry for each of `model.parameters()`, None for one that stays; without it see `update_module`.
    """
    return update_module(model, None if grads is None else [None if g is None else -lr * g for g in grads])


def meta_sgd_update(model: nn.Module, lrs: Iterable[Tensor], grads: Iterable[Tensor | None]) -> nn.Module:
    """`maml_update` with a rate for each of `model.parameters()`."""
    return update_module(model, [None if g is None else -lr * g for lr, g in zip(lrs, grads, strict=True)])


def _gradients(loss: Tensor, moving: Weights, first_order: bool, allow_unused: bool) -> Weights:
    """The gradient of the loss by each weight that it depends on."""
    frozen = [name for name, weight in moving.items() if not weight.requires_grad]
    if frozen:
        raise RuntimeError(f"{_first(frozen)} of the adapted module requires no gradient; leave it out with allow_nograd=True")
    found = torch.autograd.grad(loss, list(moving.values()), retain_graph=not first_order, create_graph=not first_order, allow_unused=True)
    gradients = dict(zip(moving, found, strict=True))
    unused = [name for name, gradient in gradients.items() if gradient is None]
    if unused and not allow_unused:
        raise RuntimeError(f"the loss does not depend on {_first(unused)} of the adapted module; leave it out with allow_unused=True")
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _step(module: nn.Module, weights: Weights, gradients: Weights, rates: Rates) -> None:
    moving = {name: weights[name] for name in gradients}
    moved, _ = sgd(moving, gradients, rates, None)  # the loss is there already, so there is no closure for `inner_step` to call
    replace(module, [(moving[name], moved[name]) for name in moving])


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


__getattr__ = nearest(__name__, ["MAML", "BaseLearner", "MetaSGD", "maml_update", "meta_sgd_update"])
