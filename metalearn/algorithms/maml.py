"""MAML: an initialisation from which a few gradient steps on a task's support set go far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from operator import index
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.inner_loop import (
    Closure,
    Update,
    Weights,
    describe_update,
    find_update,
    inner_loop,
    sgd,
    task_by_task,
)
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import assign, is_wildcard, owners, reach
from metalearn.runtime.renamed import warn_renamed

from .base import Adapted, Learner, Loss, explained

Rate = float | Tensor
LR = Rate | Mapping[str, Rate]


class LayerRates(Mapping[str, Rate]):
    """Inner rates by path, which do not change one by one: what is recorded is then what is done."""

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self.given = dict(rates)

    def __getitem__(self, path: str) -> Rate:
        return self.given[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)

    def __repr__(self) -> str:
        return repr(self.given)

    def __setitem__(self, path: str, rate: Rate) -> None:
        raise TypeError(
            f"the rates of a learner are set together: learner.lr = {{**learner.lr, {path!r}:"
            f" {rate!r}}}"
        )


class MAML(Learner):
    """Model-agnostic meta-learning (Finn, Abbeel and Levine, ICML 2017, algorithm 2).

    Inner loop, `steps` times on the support set: `phi <- phi - lr * grad L_support(phi)`, starting
    from `theta`. Outer loop: minimise the mean over tasks of `L_query(phi)` over `theta`,
    differentiating through the inner loop.

    Arguments:
        model: any module with one tensor in and one out.
        lr: the inner rate: a number, or `{module or parameter path: rate}`, wildcards such as
            `*lora_*` included, the longest path winning; what has no rate does not move. A
            parameter with `requires_grad=False` does not move either, unless a path (not "", and no
            wildcard) names it. A rate that is an `nn.Parameter` is learned by the outer loop. The
            inner loss is a mean: for a paper that sums over the ways, multiply its rate by them.
        steps: inner steps.
        first_order: drop the second derivatives (FOMAML): the gradient is the query gradient at the
            adapted weights.
        head, loss, execution, output: as for `Learner`.
        update: the inner update: "sgd", "momentum" or "adam" (see `metalearn.engine.inner_loop`),
            or a function of that form.

    Each of them but the model can be set later: it is checked again, and takes effect.

    Example:
        >>> import torch
        >>> from metalearn.models import MLP
        >>> learner = MAML(MLP(4, 2), lr={"": 0.1, "head": 0.5})
        >>> learner.adapt(Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))).weights["head.bias"].shape
        torch.Size([2])
    """

    computes_only = True

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 1,
        *,
        first_order: bool = False,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        update: str | Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        self.steps = steps
        self.first_order = first_order
        self.update = find_update(update)
        self.lr = lr

    @property
    def rates(self) -> dict[str, Rate]:
        """The rate of every parameter that moves, by name: those that are frozen at this moment are
        left out.
        """
        staying = self.held | self.frozen_names()
        return {name: rate for name, rate in self.assigned.items() if name not in staying}

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter that has one, by name."""
        given = assign(self.model, self.paths_of(lr))
        for name, rate in given.items():
            if not isinstance(rate, Tensor | float | int):
                raise TypeError(
                    f"the inner rate of {name} is {rate!r}, a {type(rate).__name__}; give a number"
                    " or a tensor"
                )
            if isinstance(rate, Tensor):
                if not bool(rate.isfinite().all()):
                    raise ValueError(
                        f"the inner rate of {name} is a tensor with values that are not finite"
                    )
            elif not (math.isfinite(rate) and rate >= 0):
                raise ValueError(
                    f"the inner rate of {name} is {rate}; it must be a finite number of 0 or more"
                )
        return {name: rate for name, rate in given.items() if isinstance(rate, Tensor) or rate > 0}

    def paths_of(self, lr: LR) -> Mapping[str, Rate]:
        """The inner rate by module or parameter path."""
        return lr if isinstance(lr, Mapping) else {"": lr}

    @explained
    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> its adapted weights, differentiable to the initial ones if gradients are
        on.
        """
        if self.needs_head and self.guessed:
            self.settle_head(network.first_task(support.inputs))
        return self.fit(network, support, lambda weights: network(weights, support.inputs))

    def fit(
        self, network: Functional, support: Examples, predict: Callable[[Weights], Tensor]
    ) -> Adapted:
        """The inner loop on the loss of these predictions for the support set."""
        self.check_support(network, support)
        checked = False

        def loss(weights: Weights) -> Tensor:
            nonlocal checked
            logits = predict(weights)
            if not checked:
                self.check_outputs(network, logits, support.targets)
                checked = True
            return self.task_loss(network, logits, support.targets)

        return Adapted(self.descend(network, loss))

    def descend(self, network: Functional, closure: Closure) -> Weights:
        """The inner loop on a closure from weights to the support loss."""
        rates = self.current_rates()
        if self.steps and not rates and self.assigned.keys() - self.held:
            raise ValueError(
                "every parameter that lr reaches has requires_grad=False, so the inner loop would"
                f" move nothing; name what is to move, as in lr={{{self.head!r}: 0.1}}, or use"
                " requires_grad_(True)"
            )
        update = self.update if network.tasks is None else task_by_task(self.update)

        def adapted() -> Weights:
            return inner_loop(
                closure,
                network.weights(self.rates),
                rates,
                self.steps,
                first_order=self.first_order,
                update=update,
                backward=lambda: self.backward(network),
            )

        return network.watched(adapted)

    def current_rates(self) -> dict[str, Rate]:
        """The rate of every parameter that moves; learned ones as the outer loop has them now."""
        learned = dict(getattr(self, "learned_rates", {}))
        return {name: learned.get(_key(name), rate) for name, rate in self.rates.items()}

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains; not the learned rates of layers that are
        frozen.
        """
        moving = {id(rate) for rate in self.current_rates().values()}
        return {
            name: p
            for name, p in super().meta_parameters().items()
            if not name.startswith("learned_rates.") or id(p) in moving
        }

    def with_steps(self, steps: int) -> Self:
        """The same learner on the same parameters with another number of inner steps, as the papers
        take more at test.
        """
        other = self.sharing()
        other.steps = steps
        return other

    def taking(self, steps: int) -> Self:
        """The former name of `with_steps`."""
        warn_renamed("taking", "with_steps")
        return self.with_steps(steps)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values; "frozen" lists the layers with parameters that have a rate
        and do not move.
        """
        values = self.lr if isinstance(self.lr, Mapping) else {"": self.lr}
        lr = {path: _plain(rate) for path, rate in values.items()}
        rates: Any = lr if isinstance(self.lr, Mapping) else lr[""]
        owner = owners(self.model)
        frozen = list(
            dict.fromkeys(owner[name] for name in self.assigned.keys() - self.rates.keys())
        )
        return {
            **super().settings(),
            "lr": rates,
            "steps": self.steps,
            "first_order": self.first_order,
            "update": describe_update(self.update),
            **({"frozen": sorted(frozen)} if frozen else {}),
        }

    def check_lr(self, lr: LR) -> LR:
        """The inner rate, if it can be set; learned rates are trained, not set."""
        if hasattr(self, "learned_rates"):
            raise ValueError(
                f"the inner rates of this {type(self).__name__} are learned, so that lr={lr!r}"
                " would undo their training; build a new learner, or load them with"
                " load_state_dict"
            )
        return LayerRates(lr) if isinstance(lr, Mapping) else lr

    def check_steps(self, steps: int) -> int:
        """The number of inner steps, if it is one."""
        try:
            steps = index(steps)
        except TypeError as error:
            raise TypeError(
                f"steps={steps!r} is a {type(steps).__name__}; the inner loop takes a whole number"
                " of steps"
            ) from error
        if steps < 0:
            raise ValueError(f"steps={steps}; the inner loop takes 0 steps or more")
        return steps

    def check_first_order(self, first_order: bool) -> bool:
        """Whether second derivatives are dropped, if it is a yes or no."""
        if not isinstance(first_order, bool):
            raise TypeError(
                f"first_order={first_order!r} is a {type(first_order).__name__}; it is True or"
                " False"
            )
        return first_order

    def check_update(self, update: str | Update) -> Update:
        """The inner update."""
        return find_update(update)

    def derive(self, name: str) -> None:
        """Spread the inner rate over parameters, once it is set; again if it is set by the head,
        and the head is.
        """
        if name != "lr" and not (name == "head" and self.needs_head and "lr" in vars(self)):
            return
        if name == "head":
            self.check_lr(self.lr)
        assigned = self.rates_of(self.lr)
        named = reach(self.model, self.paths_of(self.lr))
        self.assigned = assigned
        # What a path names moves even if it is frozen.
        self.named = frozenset(
            name
            for name, by in named.items()
            if any(path and not is_wildcard(path) for _, path in by)
        )
        learned = {
            _key(name): rate for name, rate in assigned.items() if isinstance(rate, nn.Parameter)
        }
        if learned:
            # A ParameterDict for the outer loop and for checkpoints; dots are not allowed in its
            # keys.
            self.learned_rates = nn.ParameterDict(learned)

    def frozen_names(self) -> set[str]:
        """The parameters that have a rate and stay all the same, because they have
        `requires_grad=False`.
        """
        fixed = {
            name for name, parameter in self.model.named_parameters() if not parameter.requires_grad
        }
        return (fixed & self.assigned.keys()) - self.named


def _plain(rate: Rate) -> Any:
    """A rate as a plain value: "learned", a number, or how large a tensor of rates is."""
    if isinstance(rate, nn.Parameter):
        return "learned"
    if isinstance(rate, Tensor) and rate.numel() > 1:
        return (
            f"{' x '.join(map(str, rate.shape))} rates of {float(rate.min()):g} to"
            f" {float(rate.max()):g}"
        )
    return float(rate)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict's keys may hold no dots
