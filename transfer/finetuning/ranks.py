"""Scores that depend on an order alone: the area under the ROC curve, and rank correlation.

All take how often each item counts, so that a bootstrap sample costs no sorting.
"""

from __future__ import annotations

import math

import numpy as np


class Ranks:
    """The ranks 1 to n of some values; equal values share the mean of their ranks.

    Args:
        values: (n,) numbers; if one is NaN, all ranks are.

    Example:
        >>> Ranks([0.1, 0.5, 0.5, 0.2])()
        array([1. , 3.5, 3.5, 2. ])
        >>> Ranks([0.1, 0.5])(np.array([3, 1]))  # as of [0.1, 0.1, 0.1, 0.5]
        array([2., 4.])
    """

    def __init__(self, values: np.ndarray) -> None:
        numbers = np.asarray(values, dtype=float)
        # Sorted once: the place of each item among the different values.
        _, self.places = np.unique(numbers, return_inverse=True)
        self.undefined = bool(np.isnan(numbers).any())

    def __call__(self, counts: np.ndarray | None = None) -> np.ndarray:
        """The ranks (n,) if item i is there `counts[i]` times."""
        if self.undefined:
            return np.full(len(self.places), math.nan)
        ties = np.bincount(self.places, counts)  # (different values,) items with that value
        # The first of t ties after b smaller items has rank b + 1, the last b + t.
        ranks = np.cumsum(ties) - ties + (ties + 1) / 2
        return ranks[self.places]


def area(ranks: np.ndarray, positive: np.ndarray, counts: np.ndarray | None = None) -> float:
    """The area under the ROC curve of a score, from its ranks.

    It is the share of (positive, negative) pairs whose scores are in order, ties as halves:
    `(sum of the positives' ranks - p (p + 1) / 2) / (p n)` with p positives and n negatives (Mann
    and Whitney 1947).

    Args:
        ranks: (items,) of the scores.
        positive: (items,) whether each item is positive.
        counts: (items,) how often each item counts; once by default.

    Returns:
        The area; NaN if all items are positive or none is.

    Example:
        >>> area(Ranks([0.1, 0.4, 0.35, 0.8])(), np.array([False, False, True, True]))
        0.75
    """
    weights = np.ones(len(ranks)) if counts is None else counts
    chosen = weights * positive
    p = float(chosen.sum())
    n = float(weights.sum()) - p
    if not p or not n:
        return math.nan
    return float((chosen @ ranks - p * (p + 1) / 2) / (p * n))


def correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Pearson's correlation; of ranks it is Spearman's.

    Args:
        a: (items,) numbers.
        b: (items,) numbers.
        counts: (items,) how often each item counts; once by default.

    Returns:
        The correlation; NaN if a side is constant.

    Example:
        >>> round(correlation(Ranks([1, 2, 3])(), Ranks([1, 3, 9])()), 12)
        1.0
    """
    weights = np.ones(len(a)) if counts is None else counts
    total = weights.sum()
    x = a - weights @ a / total
    y = b - weights @ b / total
    scale = math.sqrt((weights @ x**2) * (weights @ y**2))
    return float((weights * x) @ y / scale) if scale else math.nan
