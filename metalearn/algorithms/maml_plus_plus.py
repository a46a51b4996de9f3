"""MAML++: MAML with rates, norms and losses for each inner step, each on a switch of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.inner_loop import Closure, Rates, Update, inner_step, sgd
from metalearn.engine.solver import Adapted
from metalearn.episodes import Episode, Examples
from metalearn.network.functional import Functional
from metalearn.network.module_call import Weights
from metalearn.network.norm import norm_parameters
from metalearn.runtime.checks import whole_number

from .losses import Loss
from .maml import MAML
from .rates import LR, Rate, parameter_key

SMALLEST = 0.03  # of the weights of the steps before the last, times 1 / steps


class MAMLPlusPlus(MAML):
    """How to train your MAML (Antoniou, Edwards and Storkey, ICLR 2019, arXiv:1810.09502).

    Each part has a switch, and with all of them off the learner is `MAML`, bit for bit:

    - `multi_step_epochs`, the multi-step loss: while the epoch is below it, the outer loss is

          sum_i v_i L_query(phi_i)

      over the weights after every inner step, with `v` of `step_weights`: 1 / steps each at first,
      moving to the last step epoch by epoch. From then on it is the loss after the last step.
    - `first_order_epochs`, derivative-order annealing: second derivatives are dropped while the
      epoch is below it (the paper: 50 of its 100 epochs).
    - `learned_rates`, a rate to learn for every parameter tensor and step, which starts from `lr`
      and may turn negative. Beyond the trained steps the last one's is used.
    - `step_norms`, the weights and biases of the norms for every step, which the outer loop trains
      and the inner loop does not move; queries after step i use those of step i. The statistics of
      each step are those of its batch, as in the authors' code, which records running statistics
      for every step and never reads them.

    The cosine schedule of the outer rate is `meta_train(schedule="cosine")`. An epoch is `epoch`
    outer steps; `meta_train` counts them, and checkpoints store the count. In a training loop of
    your own call `learner.advance()` after each outer step; the multi-step loss is that of
    `meta_backward`, because calling the learner gives the logits of the last step.

    Args:
        model: any module with one tensor in and one out.
        lr: the inner rate (see `MAML`); the first one if `learned_rates`.
        steps: inner steps.
        multi_step_epochs: epochs of the multi-step loss; 0 for none.
        first_order_epochs: epochs without second derivatives; 0 for none.
        learned_rates: whether rates are learned.
        step_norms: whether each step has norms of its own.
        epoch: outer steps of an epoch (the paper: 500).
        first_order: as for `MAML`; not together with `first_order_epochs`.
        head: as for `Learner`.
        loss: as for `Learner`.
        update: as for `MAML`.
        execution: as for `Learner`.
        output: as for `Learner`.

    Raises:
        ValueError: `step_norms` for a model without norms, or first order twice.

    Example:
        >>> from metalearn.models import MLP
        >>> learner = MAMLPlusPlus(MLP(4, 2), lr=0.1, steps=3, learned_rates=True)
        >>> learner.rates["head.bias"].shape
        torch.Size([3])
    """

    # The epoch is an attribute, so that a new one is recorded anew.
    computes_only = True
    learns_rates: bool
    norm_names: tuple[str, ...]
    norms: nn.ParameterDict
    outer_steps: Tensor
    epoch: int

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 5,
        *,
        multi_step_epochs: int = 0,
        first_order_epochs: int = 0,
        learned_rates: bool = False,
        step_norms: bool = False,
        epoch: int = 500,
        first_order: bool = False,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        update: str | Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        # Plain attributes, which `rates_of` reads when `lr` is set.
        self.__dict__["learns_rates"] = learned_rates
        self.__dict__["norm_names"] = tuple(norm_parameters(model)) if step_norms else ()
        super().__init__(
            model,
            lr,
            steps,
            first_order=first_order,
            head=head,
            loss=loss,
            update=update,
            execution=execution,
            output=output,
        )
        self.multi_step_epochs = whole_number("multi_step_epochs", multi_step_epochs, least=0)
        self.first_order_epochs = whole_number("first_order_epochs", first_order_epochs, least=0)
        self.steps_of_epoch = whole_number("epoch", epoch)
        if first_order and first_order_epochs:
            raise ValueError("first_order=True and first_order_epochs: give one of them")
        if step_norms:
            self._make_norms()
        self.register_buffer("outer_steps", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_begin_epoch)
        _begin_epoch(self)

    # What each step has of its own.

    def rates_of(self, lr: LR) -> dict[str, Rate]:
        """The rate of every parameter that has one; (steps,) if rates are learned."""
        weights = dict(self.model.named_parameters())
        rates = {n: r for n, r in super().rates_of(lr).items() if n not in self.norm_names}
        if not self.learns_rates:
            return rates
        return {
            name: nn.Parameter(_each_step(rate, weights[name], max(self.steps, 1)))
            for name, rate in rates.items()
        }

    def _make_norms(self) -> None:
        if not self.norm_names:
            raise ValueError(
                f"step_norms=True, but {type(self.model).__name__} has no norm with weights; leave"
                " it out"
            )
        parameters = dict(self.model.named_parameters())
        norms = {}
        for name in self.norm_names:
            own = parameters[name]
            # (steps, channels), each step from the model's own
            norms[parameter_key(name)] = nn.Parameter(_each_step(own, own, max(self.steps, 1)))
        self.norms = nn.ParameterDict(norms)

    def norms_at(self, step: int) -> Weights:
        """The norms of a step, counted from 0; none without `step_norms`."""
        norms = {name: self.norms[parameter_key(name)] for name in self.norm_names}
        return {name: norm[min(step, len(norm) - 1)] for name, norm in norms.items()}

    def rates_at(self, step: int, rates: Rates) -> Rates:
        """The rates of a step, counted from 0."""
        if not self.learns_rates:
            return rates
        tensors = {name: torch.as_tensor(rate) for name, rate in rates.items()}
        return {name: rate[min(step, len(rate) - 1)] for name, rate in tensors.items()}

    def first_weights(self, network: Functional, support: Examples) -> Weights:
        """The norms of the first step."""
        return self.norms_at(0)

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, without those that norms of steps replace."""
        replaced = {f"model.{name}" for name in self.norm_names}
        return {
            name: parameter
            for name, parameter in super().meta_parameters().items()
            if name not in replaced
        }

    def backward(self, network: Functional) -> AbstractContextManager[None]:
        """A context manager for backward passes that watches the parameters with other weights."""
        return network.tripwires({*(self.rates if self.steps else ()), *self.norm_names})

    # The inner loop and the outer loss.

    def take_steps(
        self, network: Functional, closure: Closure, weights: Weights, rates: Rates
    ) -> Weights:
        """Take the inner steps from these weights."""
        return self.path(network, closure, weights, rates)[-1]

    def path(
        self, network: Functional, closure: Closure, weights: Weights, rates: Rates
    ) -> list[Weights]:
        """The weights before the first step, and after each."""
        path = [weights]
        state = None
        for step in range(self.steps):
            weights, state = inner_step(
                closure,
                {**weights, **self.norms_at(step)},
                self.rates_at(step, rates),
                first_order=self.first_order,
                update=self.update_on(network),
                state=state,
                backward=lambda: self.backward(network),
            )
            path.append(weights)
        return path

    def outer_loss(self, network: Functional, episode: Episode) -> tuple[Tensor, Tensor]:
        """One task, or a stack -> its outer loss, () or (tasks,), and its last query logits."""
        if not self.steps or self.epoch >= self.multi_step_epochs:
            return super().outer_loss(network, episode)
        closure = self.support_loss(
            network, episode.support, lambda weights: network(weights, episode.support.inputs)
        )
        first = self.initial_weights(network, episode.support)
        path = self.path(network, closure, first, self.current_rates())
        weights_of_steps = step_weights(self.steps, self.epoch, self.multi_step_epochs)
        losses = []
        for share, weights in zip(weights_of_steps, path[1:], strict=True):
            logits = self.answer(network, Adapted(weights), episode.query.inputs)
            self.check_labels(network, logits.shape, episode.query.targets)
            losses.append(share * self.task_loss(network, logits, episode.query.targets))
        return torch.stack(losses).sum(0), logits

    # Epochs.

    def advance(self) -> None:
        """Count an outer step."""
        self.outer_steps.add_(1)
        _begin_epoch(self)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values; they do not change from epoch to epoch."""
        settings = {
            **super().settings(),
            "multi_step_epochs": self.multi_step_epochs,
            "first_order_epochs": self.first_order_epochs,
            "learned_rates": self.learns_rates,
            "step_norms": bool(self.norm_names),
            "epoch": self.steps_of_epoch,
        }
        if self.first_order_epochs:
            settings["first_order"] = "annealed"
        return settings


def step_weights(steps: int, epoch: int, epochs: int) -> list[float]:
    """The weights of the query losses after each inner step, which sum to 1.

    With `u = 1 / steps`, every step has the weight `u` in epoch 0. The weights of all but the last
    step fall by `u / epochs` an epoch, to no less than `0.03 u`, and the last one has the rest. The
    paper states that the weights move to the last step; the numbers are those of the authors' code.

    Args:
        steps: inner steps.
        epoch: the number of the epoch, from 0.
        epochs: of the multi-step loss.

    Example:
        >>> step_weights(4, epoch=0, epochs=10)
        [0.25, 0.25, 0.25, 0.25]
        >>> [round(weight, 3) for weight in step_weights(4, epoch=5, epochs=10)]
        [0.125, 0.125, 0.125, 0.625]
    """
    equal = 1 / steps
    early = max(equal - epoch * equal / epochs, SMALLEST * equal)
    return [early] * (steps - 1) + [1 - (steps - 1) * early]


def _begin_epoch(learner: nn.Module, _: Any = None) -> None:
    """Set what follows from the number of outer steps."""
    assert isinstance(learner, MAMLPlusPlus)
    learner.epoch = int(learner.outer_steps) // learner.steps_of_epoch
    if learner.first_order_epochs:
        learner.first_order = learner.epoch < learner.first_order_epochs


def _each_step(rate: Rate, weight: Tensor, steps: int) -> Tensor:
    """A rate as one for each step, (steps,), or (steps, ...) for a tensor."""
    first = torch.as_tensor(rate, dtype=weight.dtype, device=weight.device).detach()
    return first.expand(steps, *first.shape).clone()
