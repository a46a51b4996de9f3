"""What a fine-tuning minimises, and how its test predictions are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transfer.experts.votes import check_counts, disagreement, spread_of_shares
from transfer.finetuning.ranks import Ranks, area, correlation
from transfer.finetuning.scores import _counts, scores

Scores: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with integer labels (examples,), or (examples, labels) if each has several."""

    metrics = ("accuracy", "balanced_accuracy", "auc")

    def labels(self, targets: Tensor) -> Tensor:
        """The classes of each example, as given; subsets and batches go by them."""
        return targets

    def class_counts(self, labels: Tensor) -> dict[int, int]:
        """How often each class occurs."""
        return _counts(labels)

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The mean cross-entropy, with `weight` (classes,)."""
        # One row for each label, of which an example may have several.
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), weight=weight)

    def scores(self, outputs: Tensor, targets: Tensor, classes: int) -> Scores:
        """Accuracy, balanced accuracy and AUC over all labels."""
        return scores(outputs.flatten(0, -2), targets.flatten(), classes)

    def check_outputs(self, outputs: Tensor, targets: Tensor, classes: int, name: str) -> None:
        """There must be an output for each class, of every label."""
        if targets.ndim > 1:
            if outputs.shape[:-1] != targets.shape:
                raise ValueError(
                    f"{name} puts out {tuple(outputs.shape[1:])} for an example of"
                    f" {targets.shape[1]} labels; it must be ({targets.shape[1]}, {classes}):"
                    " sequence_model(body, **data.dimensions)"
                )
            outputs = outputs.flatten(0, 1)  # (examples * labels, classes)
        # A test set of its own may have labels beyond those of training.
        needed = max(classes, int(targets.max()) + 1)
        if outputs.ndim != 2:
            raise ValueError(
                f"{name} puts out {tuple(outputs.shape[1:])} for an image; fine-tuning needs one"
                f" number a class, ({needed},): add a pooling and a head, or name another entry"
                " with output="
            )
        if outputs.shape[1] < needed:
            raise ValueError(
                f"labels run to {needed - 1}, but the head of {name} puts out"
                f" {tuple(outputs.shape[1:])} for an image; build the model with outputs={needed}"
            )


@dataclass(frozen=True)
class RealTargets:
    """What the losses with real targets share: scores of a predicted disagreement.

    Args:
        above: test items whose disagreement is above it are the positives of "auc_above"; None
            takes the mean disagreement of the training set.
    """

    above: float | None = None
    metrics = ("rank", "auc_above")

    def labels(self, targets: Tensor) -> Tensor:
        """One class for all examples, (examples,): subsets and batches are of all alike."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def class_counts(self, labels: Tensor) -> dict[int, int]:
        """Nothing: there are no classes to count."""
        return {}

    def fitted(self, train_targets: Tensor) -> RealTargets:
        """The same with the threshold of these training targets."""
        if self.above is not None:
            return self
        known = self.disagreement(train_targets)
        return replace(self, above=float(known[known.isfinite()].mean()))

    def scores(self, outputs: Tensor, targets: Tensor, classes: int) -> Scores:
        """Rank correlation with the disagreement, and AUC of a disagreement above `above`."""
        assert self.above is not None
        truth = self.disagreement(targets)
        known = truth.isfinite()  # an item with one rater has no disagreement
        predicted = Ranks(self.predicted(outputs)[known].double().numpy())()  # (known items,)
        values = truth[known].numpy()
        results = {
            # A constant prediction orders nothing.
            "rank": correlation(predicted, Ranks(values)()) if np.ptp(predicted) else 0.0,
            "auc_above": area(predicted, values > self.above),
        }
        return {name: value for name, value in results.items() if value == value}

    def check_outputs(self, outputs: Tensor, targets: Tensor, classes: int, name: str) -> None:
        """There must be exactly as many outputs as the loss takes."""
        if outputs.ndim != 2 or outputs.shape[1] != classes:
            raise ValueError(
                f"{name} puts out {tuple(outputs.shape[1:])} for an item, but this loss takes"
                f" ({classes},); build the model with outputs={classes}"
            )

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def read(self, targets: Tensor, name: str) -> Tensor:
        """The targets of a data set, checked."""
        raise NotImplementedError

    def outputs(self, targets: Tensor) -> int:
        """How many outputs the network needs."""
        return targets.shape[1] if targets.ndim == 2 else 1

    def disagreement(self, targets: Tensor) -> Tensor:
        """The disagreement that the targets stand for, (items,)."""
        raise NotImplementedError

    def predicted(self, outputs: Tensor) -> Tensor:
        """The disagreement that the outputs predict, (items,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class SoftVotes(RealTargets):
    """Cross-entropy with the shares of votes: targets (examples, classes) are counts of raters.

    The predicted disagreement is that of the predicted shares, `1 - sum_j p_j²`.
    """

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The mean cross-entropy of the predicted with the voted shares."""
        return F.cross_entropy(outputs, targets / targets.sum(1, keepdim=True))

    def read(self, targets: Tensor, name: str) -> Tensor:
        """Votes (items, classes) as float32."""
        return check_counts(targets, f"votes of the {name} set").float()

    def disagreement(self, targets: Tensor) -> Tensor:
        """The unbiased disagreement of the votes."""
        return disagreement(targets)

    def predicted(self, outputs: Tensor) -> Tensor:
        """The disagreement of the predicted shares."""
        return spread_of_shares(outputs.double().softmax(1))


@dataclass(frozen=True)
class SquaredError(RealTargets):
    """Squared error with a number for each example, such as a disagreement: targets (examples,)."""

    def loss(self, outputs: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(outputs[:, 0], targets)

    def read(self, targets: Tensor, name: str) -> Tensor:
        """Numbers (items,) as float32."""
        numbers = targets.float()
        if numbers.ndim == 2 and numbers.shape[1] == 1:
            numbers = numbers[:, 0]
        if numbers.ndim != 1:
            raise ValueError(
                f"the targets of the {name} set have shape {tuple(numbers.shape)}; loss='mse' takes"
                " one number for each item; votes of several classes go with loss='soft'"
            )
        wrong = (~numbers.isfinite()).nonzero()
        if len(wrong):
            item = int(wrong[0])
            raise ValueError(
                f"the target of item {item} of the {name} set is {float(numbers[item])}; drop the"
                " item (a disagreement needs two raters)"
            )
        return numbers

    def disagreement(self, targets: Tensor) -> Tensor:
        """The targets themselves."""
        return targets.double()

    def predicted(self, outputs: Tensor) -> Tensor:
        """The output itself."""
        return outputs[:, 0]


Objective: TypeAlias = Classification | RealTargets
LOSSES: dict[str, Objective] = {
    "cross_entropy": Classification(),
    "soft": SoftVotes(),
    "mse": SquaredError(),
}


def objective_of(loss: Any) -> Objective:
    """The objective by its name, or the given one.

    Raises:
        ValueError: there is no loss of that name.
    """
    if isinstance(loss, Classification | RealTargets):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(
            f"loss={loss!r}; choose {', '.join(LOSSES)}, or give SoftVotes(above=0.3) or"
            " SquaredError(above=0.3)"
        )
    return LOSSES[loss]


def check_defined(objective: RealTargets, sets: Mapping[str, Tensor], metric: str) -> None:
    """Raise ValueError if a data set does not define the metric.

    Args:
        objective: with its threshold.
        sets: {name: targets}.
        metric: the score.
    """
    assert objective.above is not None
    for name, targets in sets.items():
        truth = objective.disagreement(targets)
        known = truth[truth.isfinite()]
        low = float(known.min())
        high = float(known.max())
        if low == high:
            raise ValueError(
                f"all items of the {name} set have the disagreement {low:g}: no order can be"
                " learned or scored; add items on which raters differ"
            )
        scored = name != "training" and metric == "auc_above"
        if scored and not low <= objective.above < high:
            raise ValueError(
                f"the AUC of a disagreement above {objective.above:g} is not defined: those of the"
                f" {name} set run from {low:g} to {high:g}; choose a threshold between them, such"
                " as loss=SoftVotes(above=0.3), or metric='rank'"
            )
