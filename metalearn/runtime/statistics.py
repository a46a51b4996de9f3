"""Means with intervals, and tests against chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean with the half-width of its 95 % interval (see `confidence_half_width`).

    Attributes:
        mean: the mean.
        interval: the half-width; NaN for a single value.
    """

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value for each task, (tasks,).

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
        """The mean ± its interval, as text.

        Args:
            form: the format of both numbers.
            scale: a factor for both numbers.
            unit: stands behind them.

        Example:
            >>> Estimate(0.5, 0.02).shown(".1f", 100, " %")
            '50.0 ± 2.0 %'
            >>> Estimate(0.5, float("nan")).shown(".1f", 100, " %")
            '50.0 % (no interval)'
        """
        mean = f"{scale * self.mean:{form}}"
        if math.isnan(self.interval):
            return f"{mean}{unit} (no interval)"
        interval = format(scale * self.interval, form.lstrip("+")).strip()
        return f"{mean} ± {interval}{unit}"


def confidence_half_width(values: Tensor) -> float:
    """Half the 95 % interval of the mean of `values`: `q std(ddof=1) / sqrt(n)`.

    `q` is 1.96; below 30 values it is Student's quantile `t(0.975, n - 1)`, because 1.96 standard
    errors of 3 or 5 values would cover only 81 or 88 %.

    Args:
        values: (n,) one for each task or seed.

    Returns:
        The half-width; NaN for a single value.

    Example:
        >>> round(confidence_half_width(torch.tensor([0.0, 1.0])), 2)  # 12.71 standard errors
        6.35
        >>> confidence_half_width(torch.tensor([1.0]))
        nan
    """
    n = len(values)
    if n < 2:
        return math.nan
    quantile = 1.96
    if n < 30:
        from scipy.special import stdtrit  # imported here because scipy takes long to import

        quantile = float(stdtrit(n - 1, 0.975))
    return quantile * float(values.double().std(correction=1)) / math.sqrt(n)


class Interval(NamedTuple):
    """A value with its 95 % interval, which need not be symmetric.

    Attributes:
        value: the value.
        low: the lower end; NaN if there is no interval.
        high: the upper end; NaN if there is no interval.
    """

    value: float
    low: float
    high: float

    def shown(self, form: str = ".3f") -> str:
        """The value and its interval as text; a dash if there is no value.

        Example:
            >>> Interval(0.7, 0.65, 0.76).shown(".2f")
            '0.70 (0.65 to 0.76)'
        """
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], items: int, *, draws: int = 1000, seed: int = 0
) -> list[Interval]:
    """Percentile intervals of several statistics, from the same samples of the items.

    Items are drawn with replacement (Efron 1979). Because all statistics see the same samples, the
    interval of a difference is that of a paired comparison.

    Args:
        statistic: from how often each item counts, (items,), to the statistics, (statistics,).
        items: how many items there are.
        draws: how many samples; with 0 there are no intervals.
        seed: of the samples.

    Returns:
        The value on all items, and the 2.5 % and 97.5 % quantiles over samples, of each statistic.
        Samples whose statistic is NaN are left out.

    Example:
        >>> values = np.arange(100.0)
        >>> mean = bootstrap(lambda counts: np.array([counts @ values / 100]), 100)[0]
        >>> mean.value, round(mean.low), round(mean.high)
        (49.5, 44, 55)
    """
    values = np.asarray(statistic(np.ones(items)), dtype=float)  # (statistics,)
    generator = np.random.default_rng(seed)
    samples = np.full((draws, len(values)), math.nan)
    for sample in samples:
        counts = np.bincount(generator.integers(0, items, items), minlength=items)
        sample[:] = statistic(counts.astype(float))
    intervals = []
    for value, column in zip(values, samples.T, strict=True):
        known = column[~np.isnan(column)]
        low, high = (math.nan, math.nan)
        if len(known) and not math.isnan(value):
            low, high = np.quantile(known, (0.025, 0.975))
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


class MeanStd(NamedTuple):
    """A mean over runs with their standard deviation, as Raghu et al. 2020 write after ±.

    Attributes:
        mean: the mean.
        std: the standard deviation (ddof=1); NaN for one run.
        runs: the number of runs.
    """

    mean: float
    std: float
    runs: int

    @classmethod
    def of(cls, values: Any) -> MeanStd:
        """The mean and standard deviation of one value for each run, (runs,).

        Example:
            >>> MeanStd.of([0.0, 0.5, 1.0])
            MeanStd(mean=0.5, std=0.5, runs=3)
        """
        tensor = torch.as_tensor(values, dtype=torch.float64)
        std = float(tensor.std(correction=1)) if len(tensor) > 1 else math.nan
        return cls(float(tensor.mean()), std, len(tensor))

    def text(self, scale: float = 1.0, digits: int = 3, unit: str = "run") -> str:
        """The mean ± the standard deviation, as text; without it for one run.

        Args:
            scale: a factor for both numbers.
            digits: behind the point.
            unit: what a run is called.

        Example:
            >>> MeanStd(0.5, 0.1, 3).text(), MeanStd(0.5, float("nan"), 1).text(unit="seed")
            ('0.500 ± 0.100', '0.500 (one seed)')
        """
        mean = f"{scale * self.mean:.{digits}f}"
        if self.runs > 1:
            return f"{mean} ± {scale * self.std:.{digits}f}"
        return f"{mean} (one {unit})"


def p_value(similarity: float, chance: np.ndarray, orders: float = math.inf) -> float:
    """The add-one p value of a similarity: `(1 + #{draw >= similarity}) / (1 + draws)`, never 0.

    A draw that equals the similarity up to rounding counts as reaching it.

    Args:
        similarity: the measured value.
        chance: (draws,) the values with one side shuffled.
        orders: how many different shuffles there are. A repeated shuffle is no new evidence, so p
            is at least `1 / (1 + orders)`.

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

    The i-th smallest of m becomes `max over j <= i of (m - j + 1) p(j)`, at most 1. Rejecting all
    that are then below a level keeps the chance of any false positive below that level.

    Args:
        p_values: the p values; NaN stays NaN.
        tests: m, the number of tests; by default those with a p value.

    Returns:
        The corrected p values, in the same order.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        [0.03, 0.06, nan, 0.06]
        >>> holm([0.01, 0.04, float("nan"), 0.03], tests=4)
        [0.04, 0.09, nan, 0.09]
    """
    adjusted = [math.nan] * len(p_values)
    ascending = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    count = len(ascending) if tests is None else tests
    largest = 0.0
    for smaller, (p, i) in enumerate(ascending):
        # with j = smaller + 1: m - j + 1 = count - smaller
        largest = max(largest, min(1.0, (count - smaller) * p))
        adjusted[i] = largest
    return adjusted


def t_test(differences: np.ndarray) -> tuple[float, float]:
    """Student's two-sided test of a mean of zero.

    Args:
        differences: (pairs,) one for each task or seed.

    Returns:
        t and p. Both are NaN if all differences are the same number other than zero: their spread
        is rounding alone, which would pass for certainty. If all are zero, t is 0 and p is 1.

    Example:
        >>> t, p = t_test(np.array([0.2, 0.1, 0.1]))
        >>> round(t, 2), round(p, 3)
        (4.0, 0.057)
    """
    if len(differences) < 2:
        return math.nan, math.nan
    if not differences.any():
        return 0.0, 1.0
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return math.nan, math.nan
    from scipy import stats  # imported here because scipy takes long to import

    result = stats.ttest_1samp(differences, 0.0)
    return float(result.statistic), float(result.pvalue)
