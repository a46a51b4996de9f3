"""Scores of predictions: accuracy, balanced accuracy, area under the curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from transfer.finetuning.ranks import Ranks, area


def majority(metric: str, counts: Mapping[int, int]) -> float:
    """The score of predicting the most frequent class for every image.

    Args:
        metric: "accuracy", "balanced_accuracy" or "auc".
        counts: the number of images of each class.

    Returns:
        The score; NaN without counts.

    Example:
        >>> metrics = ("accuracy", "balanced_accuracy", "auc")
        >>> [majority(metric, {0: 30, 1: 10}) for metric in metrics]
        [0.75, 0.5, 0.5]
    """
    if not counts:
        return math.nan
    if metric == "accuracy":
        return max(counts.values()) / sum(counts.values())
    if metric == "balanced_accuracy":
        return 1 / len(counts)
    return 0.5


def scores(logits: Tensor, targets: Tensor, classes: int | None = None) -> dict[str, float]:
    """Accuracy, balanced accuracy and, if every class is among the targets, AUC.

    Args:
        logits: (examples, classes or more).
        targets: (examples,).
        classes: how many there are; by default the number of the logits' columns.

    Returns:
        The scores by name.

    Example:
        >>> import torch
        >>> scores(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
        {'accuracy': 0.666..., 'balanced_accuracy': 0.75, 'auc': 1.0}
    """
    _check_scored(logits, targets)
    count = classes or logits.shape[1]
    right = (logits.argmax(1) == targets).double()
    # The recall of each class among the targets.
    per_class = [float(right[targets == label].mean()) for label in targets.unique()]
    results = {
        "accuracy": float(right.mean()),
        "balanced_accuracy": sum(per_class) / len(per_class),
    }
    # The AUC of a class needs images of it and of others.
    if len(per_class) == count > 1:
        results["auc"] = auc(logits[:, :count], targets)
    return results


def auc(logits: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs whose scores are in order.

    Ties count half. For one class against the rest it is `(sum of the positives' ranks -
    p (p + 1) / 2) / (p n)`, with p positives and n negatives (Mann and Whitney 1947). Two classes
    give the AUC of the second. More give the unweighted mean of each against the rest, scored by
    its softmax.

    Args:
        logits: (examples, classes).
        targets: (examples,), with every class among them.

    Raises:
        ValueError: a class is not among the targets, or all targets are of one class.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.1], [0.0, 0.4], [0.0, 0.35], [0.0, 0.8]])
        >>> auc(logits, torch.tensor([0, 0, 1, 1]))
        0.75
    """
    _check_scored(logits, targets)
    classes = logits.shape[1]
    if classes > 2:
        labels = range(classes)
        values = logits.double().log_softmax(1)  # (examples, classes)
    else:
        labels = range(1, 2)
        # The order of the differences is that of the probabilities: (examples, 2).
        values = (logits[:, 1:] - logits[:, :1]).double().expand(-1, 2)
    areas = []
    for label in labels:
        positive = (targets == label).numpy()
        p = int(positive.sum())
        n = int((~positive).sum())
        if not p or not n:
            raise ValueError(
                f"the AUC of class {label} is not defined: {p} of {p + n} test images are of it;"
                " use metric='accuracy'"
            )
        areas.append(area(Ranks(values[:, label].numpy())(), positive))
    return float(np.mean(areas))


def _counts(labels: Tensor) -> dict[int, int]:
    """How often each label occurs."""
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _check_scored(logits: object, targets: object) -> None:
    if not (isinstance(logits, Tensor) and isinstance(targets, Tensor)):
        raise TypeError(
            f"scores are of two tensors, logits and labels, not {type(logits).__name__} and"
            f" {type(targets).__name__}"
        )
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(
            f"scores are of logits (examples, classes) and labels (examples,), not {shapes}"
        )


def words(metric: str) -> str:
    """A metric as people say it."""
    return {"auc": "AUC"}.get(metric, metric.replace("_", " "))
