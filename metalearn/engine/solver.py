"""What the engine asks of a learner: how a task is solved, answered and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

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
    """The outer loss of one task (or of a stack), its query logits, and the gradient for each of
    `meta_parameters()`.
    """

    loss: Tensor
    logits: Tensor
    gradients: list[Tensor | None]


class Solver(Protocol):
    """A learner as the engine sees it.

    The engine prepares a network (one task, several at once, a replica for a thread) and hands it
    over with the task; a solver never needs to know how many tasks run, or where.
    """

    model: nn.Module
    execution: str
    loss: Callable[[Tensor, Tensor], Tensor]
    known: Known
    one_by_one: bool  # it has an `adapt` or `predict` of its own, which the engine then calls, one task at a time

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
        """Query inputs -> logits (queries, ways), with the task dimension before if the network has
        one.
        """
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
        """This solver again, on the same parameters, so that one of them may have other settings."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        ...
