"""What learners with an inner loop share: rates per layer, steps, and the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import index
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.inner_loop import (
    Closure,
    Rates,
    Update,
    Weights,
    describe_update,
    find_update,
    inner_loop,
    sgd,
    task_by_task,
)
from metalearn.engine.solver import Adapted
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import is_wildcard, owners, reach
from metalearn.runtime.renamed import warn_renamed

from .base import Learner
from .losses import Loss
from .rates import LR, LayerRates, Rate, assign_rates, describe_rates, parameter_key

BUFFER = "rate of "


class GradientLearner(Learner):
    """A learner that takes gradient steps on the support set.

    A subclass chooses with `paths_of` and `rates_of` which layers the inner loop moves and how
    fast, and writes `solve`.

    Args:
        model: any module with one tensor in and one out.
        lr: the inner rate, a number or a mapping from paths (see `MAML`).
        steps: inner steps.
        first_order: drop the second derivatives.
        head: as for `Learner`.
        loss: as for `Learner`.
        update: the inner update, a name or a function (see `metalearn.engine.inner_loop`).
        execution: as for `Learner`.
        output: as for `Learner`.
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
        update: str | Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(model, head=head, loss=loss, execution=execution, output=output)
        self.steps = steps
        self.first_order = first_order
        self.update = find_update(update)
        self.lr = lr

    # Rates: which parameters move, and how fast.

    @property
    def rates(self) -> dict[str, Rate]:
        """The rate of every parameter that moves, by name; frozen ones are left out."""
        staying = self.held | self.frozen_names()
        # Tensors are buffers, which move with `.to()`.
        return {
            name: self._fixed_rate(name, rate)
            for name, rate in self.assigned.items()
            if name not in staying
        }

    def _fixed_rate(self, name: str, rate: Rate) -> Rate:
        kept = self._buffers.get(_buffer_of(name))
        return rate if kept is None else kept

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter that has one, by name."""
        return assign_rates(self.model, self.paths_of(lr))

    def paths_of(self, lr: LR) -> Mapping[str, Rate]:
        """The inner rate by module or parameter path."""
        if isinstance(lr, Mapping):
            return lr
        return {"": lr}

    def frozen_names(self) -> set[str]:
        """The parameters that have a rate and stay because they have `requires_grad=False`."""
        fixed = {
            name for name, parameter in self.model.named_parameters() if not parameter.requires_grad
        }
        return (fixed & self.assigned.keys()) - self.named

    def current_rates(self) -> dict[str, Rate]:
        """The rate of every parameter that moves; learned ones have their present values."""
        learned = dict(getattr(self, "learned_rates", {}))
        return {name: learned.get(parameter_key(name), rate) for name, rate in self.rates.items()}

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, without learned rates of frozen layers."""
        # Without a use in the inner loop, a learned rate has no gradient.
        moving = {id(rate) for rate in self.current_rates().values()}
        return {
            name: parameter
            for name, parameter in super().meta_parameters().items()
            if not name.startswith("learned_rates.") or id(parameter) in moving
        }

    def derive(self, name: str) -> None:
        """Spread the inner rate over parameters once it is set, or the head changes it."""
        if name == "lr":
            self._spread_rates()
        elif name == "head" and self.needs_head and "lr" in vars(self):
            # ANIL and BOIL have rates by the head.
            self.check_lr(self.lr)
            self._spread_rates()

    def _spread_rates(self) -> None:
        assigned = self.rates_of(self.lr)
        reached = reach(self.model, self.paths_of(self.lr))
        self.assigned = assigned
        # A parameter that a path names moves even if it is frozen.
        self.named = frozenset(name for name, by in reached.items() if _is_named(by))
        # lr may be an nn.Parameter, or Meta-SGD made one of every rate.
        learned = {
            parameter_key(name): rate
            for name, rate in assigned.items()
            if isinstance(rate, nn.Parameter)
        }
        if learned:
            # Registered, so the outer loop trains them and checkpoints store them.
            self.learned_rates = nn.ParameterDict(learned)
        self._keep_fixed_rates()

    def _keep_fixed_rates(self) -> None:
        """Register tensors given as rates as buffers, so they move and are in `state_dict`."""
        for key in [key for key in self._buffers if key.startswith(BUFFER)]:
            del self._buffers[key]
        for name, rate in self.assigned.items():
            # A tensor with a graph is the caller's, who differentiates by it; so is a Parameter.
            learned = isinstance(rate, nn.Parameter)
            if isinstance(rate, Tensor) and not learned and not rate.requires_grad:
                # Each of its own memory, as files of weights need it.
                self.register_buffer(_buffer_of(name), rate.clone())

    # The inner loop.

    def fit(
        self,
        network: Functional,
        support: Examples,
        predict: Callable[[Weights], Tensor],
    ) -> Adapted:
        """Run the inner loop on the loss of these predictions for the support set."""
        closure = self.support_loss(network, support, predict)
        return Adapted(self.descend(network, closure, self.first_weights(network, support)))

    def initial_weights(self, network: Functional, support: Examples) -> Weights:
        """Every weight by name before the inner loop."""
        return {**network.weights(self.rates), **self.first_weights(network, support)}

    def first_weights(self, network: Functional, support: Examples) -> Weights:
        """First weights of a task that are not the model's own, such as a head from prototypes.

        In a stack they have the task dimension.
        """
        return {}

    def support_loss(
        self, network: Functional, support: Examples, predict: Callable[[Weights], Tensor]
    ) -> Closure:
        """From weights to the loss of these predictions for a support set, which is checked."""
        self.check_support(network, support)
        # The number of outputs is known after the first forward pass, and stays.
        checked = False

        def loss(weights: Weights) -> Tensor:
            nonlocal checked
            logits = predict(weights)
            if not checked:
                self.check_outputs(network, logits.shape, support.targets)
                checked = True
            return self.task_loss(network, logits, support.targets)

        return loss

    def descend(
        self, network: Functional, closure: Closure, first: Weights | None = None
    ) -> Weights:
        """Run the inner loop on a closure from weights to the support loss.

        Args:
            network: the network of the task, or of a stack.
            closure: from weights to a scalar, or to (tasks,).
            first: see `first_weights`.
        """
        rates = self.current_rates()
        if self.steps and not rates and self.assigned.keys() - self.held:
            raise ValueError(
                "every parameter that lr reaches has requires_grad=False, so the inner loop would"
                f" move nothing; name what is to move, as in lr={{{self.head!r}: 0.1}}, or use"
                " requires_grad_(True)"
            )
        return network.watched(
            lambda: self.take_steps(
                network, closure, {**network.weights(self.rates), **(first or {})}, rates
            )
        )

    def take_steps(
        self, network: Functional, closure: Closure, weights: Weights, rates: Rates
    ) -> Weights:
        """Take the inner steps from these weights."""
        return inner_loop(
            closure,
            weights,
            rates,
            self.steps,
            first_order=self.first_order,
            update=self.update_on(network),
            backward=lambda: self.backward(network),
        )

    def update_on(self, network: Functional) -> Update:
        """The inner update for the tasks of a network."""
        return self.update if network.tasks is None else task_by_task(self.update)

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the labels of a stack against logits of this shape (see `Learner`)."""
        # Without an inner step the support set is not used.
        if self.steps and self.rates:
            self.check_outputs(network, logits, support)
        super().check_targets(network, support, query, logits)

    # Settings.

    def with_steps(self, steps: int) -> Self:
        """The same learner on the same parameters with another number of inner steps.

        The papers take more steps at test than in training.
        """
        other = self.sharing()
        other.steps = steps
        return other

    def taking(self, steps: int) -> Self:
        """The former name of `with_steps`."""
        warn_renamed("taking", "with_steps")
        return self.with_steps(steps)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values; "frozen" lists layers that have a rate and do not move."""
        settings = {
            **super().settings(),
            "lr": describe_rates(self.lr),
            "steps": self.steps,
            "first_order": self.first_order,
            "update": describe_update(self.update),
        }
        owner = owners(self.model)
        frozen = {owner[name] for name in self.assigned.keys() - self.rates.keys()}
        if frozen:
            settings["frozen"] = sorted(frozen)
        return settings

    def check_lr(self, lr: LR) -> LR:
        """The inner rate, if it can be set; learned rates are trained instead."""
        if hasattr(self, "learned_rates"):
            raise ValueError(
                f"the inner rates of this {type(self).__name__} are learned, so lr={lr!r} would"
                " undo their training; build a new learner, or load them with load_state_dict"
            )
        if isinstance(lr, Mapping):
            return LayerRates(lr)
        return lr

    def check_steps(self, steps: int) -> int:
        """The number of inner steps, if it is a whole number of 0 or more."""
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

    def check_first_order(self, first_order: object) -> bool:
        """Whether second derivatives are dropped, if it is True or False."""
        if not isinstance(first_order, bool):
            raise TypeError(
                f"first_order={first_order!r} is a {type(first_order).__name__}; it is True or"
                " False"
            )
        return first_order

    def check_update(self, update: str | Update) -> Update:
        """The inner update."""
        return find_update(update)


def _buffer_of(name: str) -> str:
    """The name of the buffer of a parameter's rate."""
    return f"{BUFFER}{parameter_key(name)}"


def _is_named(reached_by: list[tuple[str, str]]) -> bool:
    """Whether one of the paths that reach a parameter names it or a module around it."""
    return any(path and not is_wildcard(path) for _, path in reached_by)
