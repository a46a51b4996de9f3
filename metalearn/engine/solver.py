"""The learner as the engine sees it: how a task is solved, answered and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from metalearn.episodes import Episode, Examples
from metalearn.network.forward import Inputs
from metalearn.network.functional import Functional, Known
from metalearn.network.module_call import Weights


class Adapted(NamedTuple):
    """What a learner knows after the support set of one task.

    Attributes:
        weights: every parameter of the model by name; those that did not move are the model's own
            tensors.
        support: the features (shots, features) and labels that NIL and ProtoNet predict from; None
            for the others.
    """

    weights: Weights
    support: Examples | None = None


class OuterGradient(NamedTuple):
    """The outer gradient of one task, or of a stack.

    Attributes:
        loss: the outer loss: a scalar, or (tasks,).
        logits: the query logits: (queries, ways), or (tasks, queries, ways).
        gradients: the gradient for each of `meta_parameters()`, summed over the tasks; None for a
            parameter that the loss does not depend on.
    """

    loss: Tensor
    logits: Tensor
    gradients: list[Tensor | None]


class Solver(Protocol):
    """A learner as the engine sees it.

    The engine prepares a network (for one task, for several at once, or a replica for a thread) and
    passes it on with the task. A solver need not know how many tasks run, or where.
    """

    model: nn.Module
    execution: str
    loss: Callable[[Tensor, Tensor], Tensor]
    known: Known
    # It has an `adapt` or `predict` of its own, which the engine then calls, one task at a time.
    one_by_one: bool

    @property
    def network(self) -> Functional:
        """The model as a function of its weights, for one task."""
        ...

    @property
    def rates(self) -> Mapping[str, Any]:
        """The inner rate of every parameter that moves, by name."""
        ...

    def prepare(self, episodes: Episode) -> None:
        """Check a stack of tasks before any of them runs."""
        ...

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the targets of a stack before recorded operations run on it.

        Args:
            network: the network of the stack.
            support: the support targets.
            query: the query targets; None for predictions alone.
            logits: the shape of the logits of an earlier call.
        """
        ...

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> what was learned from it."""
        ...

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs of that task -> logits."""
        ...

    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> what was learned from it."""
        ...

    def answer(self, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs -> logits (queries, ways), or (tasks, queries, ways) for a stack."""
        ...

    def outer_gradient(self, network: Functional, episode: Episode) -> OuterGradient:
        """A task -> its outer loss, logits and gradients."""
        ...

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, by name."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with their names."""
        ...


class Steps(Solver, Protocol):
    """A solver with an inner loop, whose memory grows with its steps."""

    steps: int
    first_order: bool

    def sharing(self) -> Steps:
        """The same solver on the same parameters, to be given other settings."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        ...


# One task, or a stack, on the network that the engine prepared.


def solve(learner: Solver, network: Functional, support: Examples) -> Adapted:
    """A support set -> what the learner learns from it, on this network."""
    if learner.one_by_one:
        return learner.adapt(support)
    return learner.solve(network, support)


def answer(learner: Solver, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
    """Query inputs -> logits, on this network."""
    if learner.one_by_one:
        return learner.predict(adapted, inputs)
    return learner.answer(network, adapted, inputs)


def query_logits(learner: Solver, network: Functional, episode: Episode) -> Tensor:
    """The query logits of a task, or of a stack, on this network."""
    adapted = solve(learner, network, episode.support)
    return answer(learner, network, adapted, episode.query.inputs)


def check_unwrapped(learner: object) -> None:
    """Raise TypeError for a wrapper of a learner, which forwards its `forward` alone.

    Such are those of Fabric, Accelerate and DistributedDataParallel.
    """
    module = getattr(learner, "module", None)
    if isinstance(module, nn.Module):
        raise TypeError(
            f"the learner is a {type(learner).__name__}, a wrapper whose call alone is that of the"
            f" {type(module).__name__} in it; give what was wrapped, its .module"
        )


def device_of(learner: Solver) -> torch.device:
    """Where a learner's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in learner.parameters()), torch.device("cpu"))


def is_on(learner: Solver, kind: str) -> bool:
    """Whether all parameters are on devices of this kind, such as "cuda"."""
    return all(parameter.device.type == kind for parameter in learner.parameters())
