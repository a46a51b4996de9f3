"""Means with intervals, and tests against chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean with the half-width of its 95 % interval (see
    `metalearn.runtime.statistics.half_width`); NaN if one value gives none.
    """

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value a task (tasks,).

        Example:
            >>> Estimate.of([0.5, 0.7, 0.6, 0.6])
            Estimate(mean=0.6, interval=0.1299...)
        """
        tensor = torch.as_tensor(values, dtype=torch.float64)
        return cls(float(tensor.mean()), confidence_half_width(tensor))

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.interval

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.interval

    def shown(self, form: str = ".3f", scale: float = 1, unit: str = "") -> str:
        """The mean ± its interval, or the mean and that there is none.

        Example:
            >>> Estimate(0.5, 0.02).shown(".1f", 100, " %"), Estimate(0.5, float("nan")).shown(".1f", 100, " %")
            ('50.0 ± 2.0 %', '50.0 % (no interval)')
        """
        mean = f"{scale * self.mean:{form}}"
        if math.isnan(self.interval):
            return f"{mean}{unit} (no interval)"
        return f"{mean} ± {format(scale * self.interval, form.lstrip('+')).strip()}{unit}"


def confidence_half_width(values: Tensor) -> float:
    """Half the 95 % interval of the mean of `values` (n,): `q std(ddof=1) / sqrt(n)`.

    `q` is 1.96, or with fewer than 30 values Student's quantile `t(0.975, n - 1)`: 1.96 standard
    errors of 3 or 5 values would cover 81 and 88 %. NaN for a single value.

    Example:
        >>> round(confidence_half_width(torch.tensor([0.0, 1.0])), 2)  # 12.71 standard errors of 0.5
        6.35
        >>> confidence_half_width(torch.tensor([1.0]))
        nan
    """
    n = len(values)
    if n < 2:
        return math.nan
    quantile = 1.96
    if n < 30:
        from scipy.special import stdtrit  # here, since scipy takes long to import

        quantile = float(stdtrit(n - 1, 0.975))
    return quantile * float(values.double().std(correction=1)) / math.sqrt(n)


class MeanStd(NamedTuple):
    """A mean over runs with their standard deviation (ddof=1), which is what Raghu et al. 2020
    write after ±; NaN for one run.
    """

    mean: float
    std: float
    runs: int

    @classmethod
    def of(cls, values: Any) -> MeanStd:
        """The spread of one value a run (runs,).

        Example:
            >>> MeanStd.of([0.0, 0.5, 1.0])
            MeanStd(mean=0.5, std=0.5, runs=3)
        """
        tensor = torch.as_tensor(values, dtype=torch.float64)
        std = float(tensor.std(correction=1)) if len(tensor) > 1 else float("nan")
        return cls(float(tensor.mean()), std, len(tensor))

    def text(self, scale: float = 1.0, digits: int = 3, unit: str = "run") -> str:
        """The two numbers as people write them; one `unit` has no spread."""
        mean = f"{scale * self.mean:.{digits}f}"
        return (
            f"{mean} ± {scale * self.std:.{digits}f}" if self.runs > 1 else f"{mean} (one {unit})"
        )


def p_value(similarity: float, chance: np.ndarray, orders: float = math.inf) -> float:
    """The add-one p value of a similarity under chance: `(1 + #{draw >= similarity}) / (1 +
    draws)`, never 0.

    Draws that equal the similarity but for rounding count as reaching it.

    Args:
        similarity: the measured value.
        chance: (draws,) the values with one side shuffled.
        orders: how many different shuffles there are. Repeating one is no further evidence, so p is
            at least `1 / (1 + orders)`.

    Returns:
        The p value; NaN without a similarity or without draws.

    Example:
        >>> p_value(0.9, np.array([0.1, 0.3, 0.2, 0.95]))  # 1 of 4 draws reaches it
        0.4
    """
    if not len(chance) or math.isnan(similarity) or np.isnan(chance).any():
        return math.nan
    reached = int((chance >= similarity - 1e-9).sum())
    return max((1 + reached) / (1 + len(chance)), 1 / (1 + orders))


def holm(p_values: Sequence[float], *, tests: int | None = None) -> list[float]:
    """P values corrected for their number, by Holm's step-down rule (1979).

    The i-th smallest of m becomes `max over j <= i of (m - j + 1) p(j)`, at most 1. Rejecting
    what is below a level then keeps the chance of any false positive below it.

    Args:
        p_values: the p values; NaN stays NaN.
        tests: m, how many tests there were; by default those with a p value.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        [0.03, 0.06, nan, 0.06]
        >>> holm([0.01, 0.04, float("nan"), 0.03], tests=4)
        [0.04, 0.09, nan, 0.09]
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    count = len(known) if tests is None else tests
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (count - rank) * p))
        adjusted[i] = largest
    return adjusted


def t_test(differences: np.ndarray) -> tuple[float, float]:
    """Student's test of a mean of zero, two-sided -> (t, p).

    Differences that are all one number other than zero have no spread but rounding, which would
    pass for certainty: t and p are NaN. If all are zero, t is 0 and p is 1.

    Args:
        differences: (pairs,) one a task or a seed.

    Example:
        >>> t, p = t_test(np.array([0.2, 0.1, 0.1]))
        >>> round(t, 2), round(p, 3)
        (4.0, 0.057)
    """
    if len(differences) < 2:
        return math.nan, math.nan
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return (0.0, 1.0) if not differences.any() else (math.nan, math.nan)
    from scipy import stats  # here, since it takes long to import

    found = stats.ttest_1samp(differences, 0.0)
    return float(found.statistic), float(found.pvalue)
