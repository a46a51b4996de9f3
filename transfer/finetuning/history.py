"""The scores and losses of one training as it runs, and the rule that stops it early."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.network.forward import Inputs
from metalearn.runtime.files import Record
from transfer.finetuning.curve import Curve, Snapshot
from transfer.finetuning.objectives import Objective

Advance: TypeAlias = Callable[..., None]
Part: TypeAlias = tuple[Any, Tensor]
"""Inputs and labels, or other targets."""

# What a stopped training needs of its history to continue.
LISTS = ("steps", "scores", "validation", "predicted", "seconds", "best", "best_weights")
VALUES_OF_STEPS = ("losses", "penalties")


class History:
    """Scores and losses of one training, and the rule that stops it early.

    Args:
        model: the network that trains.
        logits: `logits(inputs, count)` gives the model's logits of the first `count` examples.
        test: the test set.
        validation: the validation set, if there is one.
        classes: the number of classes.
        objective: scores the logits.
        metric: the name of the score that counts.
        steps: of the whole training.
        early_stop: evaluations without a better validation score after which training stops.
        keep_best: whether the evaluation with the best validation score counts.
        advance: called as `advance(count, text)` at every evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        logits: Callable[[Inputs, int], Tensor],
        test: Part,
        validation: Part | None,
        classes: int,
        objective: Objective,
        metric: str,
        steps: int,
        early_stop: int | None,
        keep_best: bool,
        advance: Advance,
    ) -> None:
        self.model = model
        self.logits = logits
        self.test = test
        self.validation_set = validation
        self.classes = classes
        self.objective = objective
        self.metric = metric
        self.planned = steps
        self.early_stop = early_stop
        self.keep_best = keep_best or early_stop is not None
        self.advance = advance
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.penalties: list[float] = []
        self.validation: list[float] = []
        self.predicted: list[dict[int, int]] = []
        self.seconds = 0.0
        self.best = 0  # the evaluation with the best validation score
        self.best_weights: dict[str, Tensor] = {}

    @property
    def step(self) -> int:
        """The number of updates up to the last evaluation; 0 before any."""
        return self.steps[-1] if self.steps else 0

    @property
    def updates(self) -> int:
        """The number of updates whose losses are in; those after `step` are not yet evaluated."""
        return len(self.losses)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or training stops early."""
        # Evaluations since the best one.
        waited = len(self.steps) - 1 - self.best
        stopped = self.early_stop is not None and waited >= self.early_stop
        return stopped or self.step >= self.planned

    def state_dict(self) -> Record:
        """Everything so far, as numbers, lists, dictionaries and tensors."""
        state: Record = {name: getattr(self, name) for name in LISTS}
        for name in VALUES_OF_STEPS:
            state[name] = torch.tensor(getattr(self, name), dtype=torch.float64)  # (steps,)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in LISTS:
            setattr(self, name, state[name])
        for name in VALUES_OF_STEPS:
            setattr(self, name, state[name].tolist())
        if self.step:
            self.advance(self.step, f"continued after step {self.updates}")

    def add_losses(self, step: int, losses: list[Tensor], penalties: list[Tensor]) -> None:
        """Add the losses and penalties of the steps up to `step`; raises if one is not finite."""
        # One transfer for all steps; it waits for the device, so its work counts in the seconds.
        values = torch.stack(losses).tolist()
        added = torch.stack(penalties).tolist() if penalties else []
        first = step - len(values) + 1
        for number, loss in enumerate(values):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {first + number}; a lower lr keeps it finite"
                )
            if added and not math.isfinite(added[number]):
                raise FloatingPointError(
                    f"the penalty is {added[number]} at step {first + number}; check its values,"
                    " or take a smaller strength"
                )
        self.losses += values
        self.penalties += added

    def evaluate(self, step: int) -> None:
        """Score the model on the test set, and on the validation set if there is one."""
        advanced = step - self.step
        inputs, targets = self.test
        logits = self._logits(inputs, targets)
        results = self.objective.scores(logits, targets, self.classes)
        self.steps.append(step)
        self.predicted.append(self.objective.class_counts(logits.argmax(-1)))
        for name, value in results.items():
            self.scores.setdefault(name, []).append(value)
        if self.validation_set:
            self._validate(*self.validation_set)
        if advanced:
            self.advance(advanced, f"{self.metric} {results[self.metric]:.3f}")

    def _validate(self, inputs: Inputs, targets: Tensor) -> None:
        logits = self._logits(inputs, targets)
        score = self.objective.scores(logits, targets, self.classes)[self.metric]
        best = max(self.validation, default=-math.inf)
        self.validation.append(score)
        if self.keep_best and score > best:
            self.best = len(self.steps) - 1
            self.best_weights = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }

    def finish(self, snapshots: Mapping[int, Snapshot], stopped: str = "") -> Curve:
        """The curve; with early stopping the model goes back to its best weights.

        Args:
            snapshots: the weights that are kept.
            stopped: why a callback stopped the training; empty if none did.
        """
        # Otherwise the last evaluation counts.
        last = len(self.steps) - 1
        best = self.best if self.keep_best else last
        if self.best_weights and best != last:
            self.model.load_state_dict(self.best_weights)
        # The progress bar ends full, though training stopped before.
        if self.step < self.planned:
            self.advance(self.planned - self.step, "stopped early")
        return Curve(
            metric=self.metric,
            steps=tuple(self.steps),
            scores={name: tuple(values) for name, values in self.scores.items()},
            losses=tuple(self.losses),
            seconds=round(self.seconds, 3),
            best=best,
            validation=tuple(self.validation),
            test_counts=self.objective.class_counts(self.test[1]),
            predicted_counts=self.predicted[best],
            penalties=tuple(self.penalties),
            snapshots=snapshots,
            stopped=stopped,
        )

    def _logits(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's logits, (examples, classes or more); raises if they cannot be scored.

        With several labels an example they are (examples, labels, classes or more).
        """
        logits = self.logits(inputs, len(targets))
        name = type(self.model).__name__
        self.objective.check_outputs(logits, targets, self.classes, name)
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"the predictions after {self.step} steps are not finite; try a lower lr"
            )
        return logits
