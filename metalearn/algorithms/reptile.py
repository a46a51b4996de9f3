"""Reptile: move the initialisation towards where plain training on a task ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine.inner_loop import Update, sgd
from metalearn.engine.solver import OuterGradient
from metalearn.episodes import Episode
from metalearn.network.functional import Functional

from .losses import Loss
from .maml import MAML
from .rates import LR


class Reptile(MAML):
    """Reptile (Nichol, Achiam and Schulman, 2018): the outer gradient is `theta - phi`.

    There is no derivative through the inner loop. `phi` is where `steps` inner steps on the support
    set end. With plain SGD of rate 1 as outer optimiser, `theta` moves all the way to the mean of
    the tasks' `phi`. The paper uses many inner steps of Adam on minibatches (`update="adam"`).

    Train with `meta_backward` or `meta_train`. There is no outer loss to differentiate, so calling
    the learner while gradients are on raises RuntimeError.

    The arguments are those of `MAML` without `first_order`.

    Example:
        >>> import metalearn
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = Reptile(MLP(1, 1), lr=0.01, steps=5, loss=torch.nn.functional.mse_loss)
        >>> tasks = metalearn.episodes.stack([Sinusoid(shots=10, queries=10, tasks=1)[0]])
        >>> metalearn.meta_backward(learner, tasks).losses.shape
        torch.Size([1])
    """

    computes_only = True

    def __init__(
        self,
        model: nn.Module,
        lr: LR,
        steps: int = 1,
        *,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        update: str | Update = sgd,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__(
            model,
            lr,
            steps,
            first_order=True,
            head=head,
            loss=loss,
            update=update,
            execution=execution,
            output=output,
        )

    def check_first_order(self, first_order: object) -> bool:
        """Reptile takes no derivative through the inner loop."""
        if first_order is not True:
            raise ValueError(
                f"first_order={first_order!r}: Reptile takes no derivative through the inner loop"
                " at all; use MAML for that"
            )
        return True

    def check_lr(self, lr: LR) -> LR:
        """The inner rate; a learned one is refused, because Reptile has no gradient for it."""
        if any(isinstance(rate, nn.Parameter) for rate in self.paths_of(lr).values()):
            raise ValueError(
                "Reptile has no gradient for a learned inner rate; give a number, or use MAML or"
                " MetaSGD to learn it"
            )
        return super().check_lr(lr)

    def forward(self, episodes: Episode) -> Tensor:
        """A stack of tasks -> query logits (tasks, queries, ways), for evaluation."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Reptile has no outer loss to differentiate: its outer gradient is theta - phi."
                " Train with metalearn.meta_backward(learner, episodes), and evaluate under"
                " torch.no_grad()"
            )
        return super().forward(episodes)

    def outer_gradient(self, network: Functional, episode: Episode) -> OuterGradient:
        """One task -> its query loss for the record, its query logits, and theta - phi."""
        with torch.no_grad():
            adapted = self.solve(network, episode.support)
            logits = self.answer(network, adapted, episode.query.inputs)
            self.check_labels(network, logits.shape, episode.query.targets)
            loss = self.task_loss(network, logits, episode.query.targets)
            # The outer optimiser's step -lr (theta - phi) goes towards phi.
            gradients: list[Tensor | None] = [
                self._distance(name.removeprefix("model."), theta, adapted.weights)
                for name, theta in self.meta_parameters().items()
            ]
        return OuterGradient(loss, logits, gradients)

    def _distance(self, name: str, theta: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """`theta - phi` of a parameter, summed over the tasks of a stack."""
        distance = theta - weights[name]
        if distance.ndim > theta.ndim:
            return distance.sum(0)  # (tasks, ...) -> (...)
        return distance
