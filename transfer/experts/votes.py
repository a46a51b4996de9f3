"""Votes of several raters, and how much the raters of an item disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNTS = "votes are how many raters chose each class, (items, classes), such as [[3, 0], [1, 2]]"


def disagreement(
    counts: Any, *, unbiased: bool = True, grades: Sequence[float] | None = None
) -> Tensor:
    r"""How much the raters of each item disagree.

    With shares $p_j$ of n votes, it is the probability that two votes differ,
    $U = 1 - \sum_j p_j^2$, or for grades $c_j$ the variance $\sum_j c_j^2 p_j - (\sum_j c_j
    p_j)^2$ (Raghu et al. 2019, arXiv:1807.01771). The expectation of both over n raters is
    $1 - 1/n$ times the value of infinitely many raters, so `unbiased` multiplies by n / (n - 1):
    items with different numbers of raters can be compared.

    Args:
        counts: (items, classes) how many raters chose each class.
        unbiased: whether to correct for the number of raters.
        grades: (classes,) the number that each class stands for, if the classes are ordered, such
            as (0, 1, 2, 3, 4); the result is then a variance.

    Returns:
        (items,) float64; NaN for an item with one rater if `unbiased`.

    Raises:
        TypeError: `counts` is no matrix of numbers.
        ValueError: a count is negative or no whole number, an item has no votes, or no item has
            two raters.

    Example:
        >>> disagreement([[3, 0], [2, 1], [1, 1]])
        tensor([0.0000, 0.6667, 1.0000], dtype=torch.float64)
        >>> disagreement([[1, 1]], unbiased=False)
        tensor([0.5000], dtype=torch.float64)
    """
    votes = check_counts(counts)
    raters = votes.sum(1)  # (items,)
    if unbiased and not (raters > 1).any():
        raise ValueError(
            f"all {len(votes)} items have one rater, which says nothing about disagreement; give"
            " votes of two or more raters an item"
        )
    # One rater makes 0 / 0 below, which is NaN.
    pairs = raters * (raters - 1 if unbiased else raters)
    if grades is None:
        # Pairs of raters who differ, as whole numbers: equal votes give equal bits, whatever the
        # order of the classes, so that ties stay ties.
        return (raters.square() - votes.square().sum(1)) / pairs
    return spread_of_shares(votes / raters[:, None], grades) * raters.square() / pairs


def spread_of_shares(shares: Tensor, grades: Sequence[float] | None = None) -> Tensor:
    r"""The disagreement of infinitely many raters: $1 - \sum_j p_j^2$, or the variance of grades.

    Args:
        shares: (items, classes) with rows that sum to 1.
        grades: as `disagreement` takes them.

    Returns:
        (items,).

    Example:
        >>> spread_of_shares(torch.tensor([[0.5, 0.5]]), grades=(0, 4))
        tensor([4.])
    """
    if grades is None:
        return 1 - shares.square().sum(1)
    values = torch.as_tensor(grades, dtype=shares.dtype, device=shares.device)
    if values.shape != shares.shape[1:]:
        raise ValueError(
            f"{values.numel()} grades for {shares.shape[1]} classes; give one number for each class"
        )
    # Centred first, so that large grades lose no digits: (items, classes).
    centred = values - (shares @ values)[:, None]
    return (shares * centred.square()).sum(1)


def check_counts(counts: Any, name: str = "votes") -> Tensor:
    """The votes (items, classes) as float64.

    Args:
        counts: a matrix as a tensor, an array or lists.
        name: what they are called in errors.

    Raises:
        TypeError: it is no matrix of numbers.
        ValueError: there are no items, a count is negative or no whole number, or an item has no
            votes.
    """
    try:
        array = counts if isinstance(counts, Tensor) else torch.as_tensor(np.asarray(counts))
    except (TypeError, ValueError) as error:
        raise TypeError(f"the {name} are no matrix of numbers ({error}); {COUNTS}") from error
    if array.ndim != 2 or array.is_complex() or not array.shape[1]:
        raise TypeError(f"the {name} have shape {tuple(array.shape)}; {COUNTS}")
    votes = array.detach().cpu().double()
    if not len(votes):
        raise ValueError(f"the {name} are of no item; give one row for each item")
    wrong = ~((votes >= 0) & (votes == votes.round()) & votes.isfinite())
    if wrong.any():
        item, label = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"the {name} of item {item} for class {label} are {votes[item, label]:g}; give whole"
            " numbers of raters, not shares or scores"
        )
    empty = (votes.sum(1) == 0).nonzero()
    if len(empty):
        raise ValueError(f"item {int(empty[0])} has no {name}; drop it, or collect some")
    return votes


def counts_of_raters(labels: Any, classes: int) -> Tensor:
    """Votes from the label that each rater gave.

    Args:
        labels: (items, raters) integer labels from 0.
        classes: how many classes there are.

    Returns:
        (items, classes) int64.

    Raises:
        ValueError: a label is not one of the classes.

    Example:
        >>> counts_of_raters([[0, 2, 2]], classes=3)
        tensor([[1, 0, 2]])
    """
    chosen = torch.as_tensor(np.asarray(labels).astype(np.int64))
    if chosen.ndim != 2:
        raise ValueError(
            f"the labels have shape {tuple(chosen.shape)}; give one row for each item and one"
            " column for each rater"
        )
    wrong = (chosen < 0) | (chosen >= classes)
    if wrong.any():
        item, rater = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"rater {rater} gave item {item} the label {int(chosen[item, rater])}; labels run from"
            f" 0 to {classes - 1}"
        )
    counts = torch.zeros(len(chosen), classes, dtype=torch.int64)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen))
