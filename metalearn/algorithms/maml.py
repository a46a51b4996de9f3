"""MAML: an initialisation from which a few gradient steps on a task's support set go far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import index
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from ..episodes import Examples
from ..inner_loop import Closure, Update, Weights, inner_loop, sgd, task_by_task
from ..layers import assign
from ..learner import Adapted, Learner, Loss

Rate = float | Tensor
LR = Rate | Mapping[str, Rate]


class MAML(Learner):
    """Model-agnostic meta-learning (Finn, Abbeel and Levine, ICML 2017, algorithm 2).

    Inner loop, `steps` times on the support set: `phi <- phi - lr * grad L_support(phi)`, starting from `theta`.
    Outer loop: minimise the mean over tasks of `L_query(phi)` over `theta`, differentiating through the inner loop.

    Arguments:
        model: any module with one tensor in and one out.
        lr: the inner rate: a number, or `{module or parameter path: rate}`, the longest path winning; what has no rate does not
            move. A rate that is an `nn.Parameter` is learned by the outer loop. The inner loss is a mean: for a paper that sums over
            the ways, multiply its rate by them.
        steps: inner steps.
        first_order: drop the second derivatives (FOMAML): the gradient is the query gradient at the adapted weights.
        head, loss, execution, output: as for `Learner`.
        update: the inner update, `sgd` by default (see `metalearn.inner_loop.sgd`).

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner = MAML(MLP(4, 2), lr={"": 0.1, "head": 0.5})
        >>> learner.adapt(Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))).weights["head.bias"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 1,
        *,
        first_order: bool = False,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        update: Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        if index(steps) < 0:
            raise ValueError(f"steps={steps}; the inner loop takes 0 steps or more")
        self.lr, self.steps, self.first_order, self.update = lr, steps, first_order, update
        self.rates = self.rates_of(lr)
        learned = {name: rate for name, rate in self.rates.items() if isinstance(rate, nn.Parameter)}
        if learned:
            # A ParameterDict for the outer loop and for checkpoints; dots are not allowed in its keys.
            self.learned_rates = nn.ParameterDict({_key(name): rate for name, rate in learned.items()})

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter that moves, by name."""
        given = assign(self.model, dict(lr) if isinstance(lr, Mapping) else {"": lr})
        for name, rate in given.items():
            if not isinstance(rate, Tensor | float | int):
                raise TypeError(f"the inner rate of {name} is {rate!r}, a {type(rate).__name__}; give a number or a tensor")
            if isinstance(rate, Tensor):
                if not bool(rate.isfinite().all()):
                    raise ValueError(f"the inner rate of {name} is a tensor with values that are not finite")
            elif not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"the inner rate of {name} is {rate}; it must be a finite number of 0 or more")
        return {name: rate for name, rate in given.items() if isinstance(rate, Tensor) or rate > 0}

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> its adapted weights, differentiable to the initial ones where gradients are on."""
        self.check_outputs(support)
        return Adapted(self.descend(lambda weights: self.task_loss(self.call(weights, support.inputs), support.targets)))

    def descend(self, closure: Closure) -> Weights:
        """The inner loop on a closure from weights to the support loss."""
        update = task_by_task(self.update) if self.stacked else self.update

        def adapted() -> Weights:
            weights, rates = self.weights(), self.current_rates()
            return inner_loop(closure, weights, rates, self.steps, first_order=self.first_order, update=update, backward=self.backward)

        return self.watched(adapted)

    def current_rates(self) -> dict[str, Rate]:
        """The rate of every parameter that moves; learned ones as the outer loop has them now."""
        learned = dict(getattr(self, "learned_rates", {}))
        return {name: learned.get(_key(name), rate) for name, rate in self.rates.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains; not the learned rates of layers that are frozen."""
        moving = {f"learned_rates.{_key(name)}" for name in self.rates}
        return {name: p for name, p in super().trained().items() if not name.startswith("learned_rates.") or name in moving}

    def taking(self, steps: int) -> Self:
        """The same learner on the same parameters with another number of inner steps, as the papers take more at test."""
        other = self.on()
        other.steps = steps
        return other

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        values = self.lr if isinstance(self.lr, Mapping) else {"": self.lr}
        lr = {path: "learned" if isinstance(rate, nn.Parameter) else float(rate) for path, rate in values.items()}
        rates: Any = lr if isinstance(self.lr, Mapping) else lr[""]
        return {
            **super().settings(),
            "lr": rates,
            "steps": self.steps,
            "first_order": self.first_order,
            "update": getattr(self.update, "__name__", type(self.update).__name__),
        }


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict's keys may hold no dots
