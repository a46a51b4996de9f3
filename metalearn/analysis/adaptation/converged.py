"""A head run to convergence on the support features of a fixed body."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.engine.inner_loop import Weights
from metalearn.episodes import Episode
from metalearn.network.forward import Inputs
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside

Start = Literal["zeros", "initial"]
STARTS: tuple[Start, Start] = ("zeros", "initial")

TOLERANCE = 0.01
STEPS = 200
CRITERION = (
    "Converged: the largest entry of the gradient of the support loss by the head is below "
    f"{TOLERANCE:.0%} of what it is at a head of zeros, within {STEPS} steps of L-BFGS."
)


class HeadFit(NamedTuple):
    """A head that was run on the support set of one task.

    Attributes:
        weights: every weight of the model by name, with those of the head at the end.
        loss: the support loss at the end.
        gradient: the largest entry of its gradient by the head, as a share of the largest at a head
            of zeros; 0 if there is nothing to train.
    """

    weights: Weights
    loss: float
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the criterion is met (`CRITERION`)."""
        return math.isfinite(self.loss) and self.gradient < TOLERANCE


class Convergence(NamedTuple):
    """How many heads did not converge, and the worst of them.

    Attributes:
        heads: the number of heads.
        unconverged: how many of them did not converge.
        loss: the support loss of the worst of those; NaN if there is none with finite numbers.
        gradient: its remaining gradient, as in `HeadFit`.
    """

    heads: int
    unconverged: int
    loss: float
    gradient: float

    @classmethod
    def of(cls, fits: Sequence[HeadFit]) -> Convergence:
        """The convergence of these heads.

        Example:
            >>> Convergence.of([HeadFit({}, 0.01, 0.005), HeadFit({}, 0.7, 0.2)])
            Convergence(heads=2, unconverged=1, loss=0.7, gradient=0.2)
        """
        failed = [fit for fit in fits if not fit.converged]
        finite = [fit for fit in failed if math.isfinite(fit.loss + fit.gradient)]
        worst = max(finite, key=lambda fit: fit.gradient, default=None)
        if worst is None:
            return cls(len(fits), len(failed), math.nan, math.nan)
        return cls(len(fits), len(failed), worst.loss, worst.gradient)

    @property
    def share(self) -> float:
        """The share that did not converge."""
        return self.unconverged / max(self.heads, 1)

    @property
    def note(self) -> str:
        """A warning for the reader; empty if all of them converged."""
        if not self.unconverged:
            return ""
        failed = f"{self.unconverged} of {self.heads} heads did not converge in {STEPS} steps"
        if math.isnan(self.loss):
            return f"{failed}: their support loss is not finite"
        return (
            f"{failed}; the worst of those with a finite loss stopped at a support loss of"
            f" {self.loss:.3g} with {self.gradient:.0%} of the gradient at zeros, so its readout"
            " understates what the features carry"
        )


class FixedBody:
    """The body of a learner under fixed weights, and its features on one task, to train heads on.

    Args:
        learner: the learner whose loss is used.
        network: its network, or a replica of it.
        weights: every weight of the model; those of the body stay.
        task: one task, without a task dimension.
    """

    def __init__(
        self, learner: Learner, network: Functional, weights: Weights, task: Episode
    ) -> None:
        self.learner = learner
        self.network = network
        self.weights = {name: weight.detach() for name, weight in weights.items()}
        self.task = task
        with torch.no_grad():
            support = network.features(self.weights, task.support.inputs)
            self.query_features = network.features(self.weights, task.query.inputs).values
        self.support_features = support.values
        self.ends_in_head = support.ends_in_head

    def query_logits(self, weights: Weights) -> Tensor:
        """The logits (queries, ways) of the head in these weights, on the query features."""
        with torch.no_grad():
            return self._logits(weights, self.query_features, self.task.query.inputs)

    def fit(self, start: Start = "zeros") -> HeadFit:
        """The head run from `start` until its support loss is stationary (`CRITERION`).

        Args:
            start: "zeros", or "initial" for the learner's own initialisation of the head.
        """
        initial = self.starts[start]
        scale = self.scale
        loss = float(self._loss(initial))
        if not math.isfinite(loss + scale):
            return HeadFit({**self.weights, **initial}, math.nan, math.inf)
        if not scale:  # the features, or the labels, leave nothing to learn
            return HeadFit({**self.weights, **initial}, loss, 0.0)
        # |gradient| < TOLERANCE * |gradient at zeros|, entry by entry
        head = minimise(self._loss, initial, TOLERANCE * scale, STEPS)
        gradient = largest(self._gradients(head)) / scale
        return HeadFit({**self.weights, **head}, float(self._loss(head)), gradient)

    @cached_property
    def starts(self) -> dict[str, Weights]:
        """The head's first weights, by the name of the start."""
        weights = self.learner.initial_weights(self.network, self.task.support)
        initial = {
            name: weights[name].detach() for name in weights if is_inside(name, self.network.head)
        }
        return {
            "zeros": {name: torch.zeros_like(weight) for name, weight in initial.items()},
            "initial": initial,
        }

    @cached_property
    def scale(self) -> float:
        """The largest entry of the gradient at a head of zeros: the unit of convergence."""
        scale = largest(self._gradients(self.starts["zeros"]))
        if 0 < scale < math.inf:
            return scale
        # Zeros are a saddle of some heads (LoRA), and not valid for others (weight norm).
        return largest(self._gradients(self.starts["initial"]))

    def _loss(self, head: Weights) -> Tensor:
        support = self.task.support
        logits = self._logits({**self.weights, **head}, self.support_features, support.inputs)
        return self.learner.task_loss(self.network, logits, support.targets)

    def _logits(self, weights: Weights, features: Tensor, inputs: Inputs) -> Tensor:
        if self.ends_in_head:
            return self.network.call_head(weights, features)
        return self.network(weights, inputs)  # the model goes on after its head

    def _gradients(self, head: Weights) -> list[Tensor]:
        with torch.enable_grad():
            leaves = {name: weight.detach().requires_grad_() for name, weight in head.items()}
            gradients = torch.autograd.grad(
                self._loss(leaves), list(leaves.values()), allow_unused=True
            )
        return [gradient for gradient in gradients if gradient is not None]


def minimise(
    loss: Callable[[Weights], Tensor], start: Weights, tolerance: float, steps: int
) -> Weights:
    """Weights at which no entry of the gradient of `loss` is larger than `tolerance`, by L-BFGS.

    Args:
        loss: from weights by name to a scalar.
        start: the first weights; they are not changed.
        tolerance: the largest entry of the gradient at which to stop.
        steps: the most steps to take.

    Example:
        >>> start = {"w": torch.zeros(1)}
        >>> end = minimise(lambda w: ((w["w"] - 3) ** 2).sum(), start, tolerance=1e-4, steps=50)
        >>> round(end["w"].item(), 3)
        3.0
    """
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in start.items()}
    optimizer = torch.optim.LBFGS(
        leaves.values(),
        max_iter=steps,
        tolerance_grad=tolerance,
        tolerance_change=0.0,  # stop at the gradient alone
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        with torch.enable_grad():
            value = loss(leaves)
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for weight, gradient in zip(leaves.values(), gradients, strict=True):
            weight.grad = gradient
        return value.detach()

    optimizer.step(closure)
    return {name: weight.detach() for name, weight in leaves.items()}


def largest(gradients: Sequence[Tensor]) -> float:
    """The largest magnitude of all entries; 0 if there are none, infinite if one is NaN."""
    sizes = [float(gradient.abs().max()) for gradient in gradients if gradient.numel()]
    if any(math.isnan(size) for size in sizes):
        return math.inf
    return max(sizes, default=0.0)
