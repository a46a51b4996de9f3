"""Tests of differences between starts over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from metalearn.runtime.statistics import Estimate, holm, t_test

ENUMERATED = 16  # seeds up to which all patterns of signs are tried


def over_seeds(values: Sequence[float], level: float = 0.05) -> Estimate:
    """The mean over seeds with the half-width of its t interval.

    The half-width is `t(1 - level / 2, n - 1) std(ddof=1) / sqrt(n)`; NaN for one seed.

    Args:
        values: (seeds,) one number a seed.
        level: the interval covers 1 - level.

    Raises:
        TypeError: the values are no list of numbers.
        ValueError: there are none, they are no flat list, or the level is not between 0 and 1.

    Example:
        >>> over_seeds([0.8, 0.9, 1.0])
        Estimate(mean=0.9, interval=0.248...)
    """
    array = _per_seed("over_seeds()", values)
    _check_level(level)
    if not len(array):
        raise ValueError("over_seeds() got no values; give one for each seed")
    if len(array) < 2:
        return Estimate(float(array.mean()), math.nan)
    from scipy import stats  # here, since it takes long to import

    quantile = stats.t.ppf(1 - level / 2, len(array) - 1)
    return Estimate(float(array.mean()), float(quantile * stats.sem(array)))


@dataclass(frozen=True)
class Paired:
    """One start against another on the same seeds.

    Attributes:
        difference: the mean difference with its t interval.
        t: the statistic of the paired t test, which assumes normal differences.
        p: its two-sided p; NaN if all differences are the same number other than zero.
        exact: p of the sign-flip test, which assumes only that differences are symmetric about
            zero: the share of the 2^n patterns of signs whose mean is as far from zero as this one.
        smallest: the least that `exact` can be with this many seeds, 2 / 2^n.
        seeds: n.
    """

    difference: Estimate
    t: float
    p: float
    exact: float
    smallest: float
    seeds: int

    def __str__(self) -> str:
        difference = self.difference.shown("+.4g")
        return (
            f"{difference} (t = {self.t:.2f}, p = {self.p:.2g}; sign flip p = {self.exact:.2g};"
            f" {self.seeds} seeds)"
        )


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.05) -> Paired:
    """Compare two measurements of each seed.

    Args:
        a: (seeds,) numbers.
        b: (seeds,) numbers, in the same order of seeds.
        level: the interval covers 1 - level.

    Returns:
        The mean of a - b with its interval and tests.

    Raises:
        ValueError: the two differ in length, are empty, or hold a value that is not finite.

    Example:
        >>> test = paired([0.80, 0.84, 0.83], [0.70, 0.71, 0.74])
        >>> round(test.difference.mean, 4), round(test.p, 4), test.exact
        (0.1067, 0.0125, 0.25)
        >>> print(test)
        +0.1067 ± 0.05171 (t = 8.88, p = 0.012; sign flip p = 0.25; 3 seeds)
    """
    first = _per_seed("paired()", a)
    second = _per_seed("paired()", b)
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"paired() needs as many values of one as of the other, one for each seed, not"
            f" {first.shape} and {second.shape}"
        )
    differences = first - second  # (seeds,)
    if not np.isfinite(differences).all():
        raise ValueError(
            f"paired() got a value that is not finite: {first.tolist()} against {second.tolist()}"
        )
    t, p = t_test(differences)
    seeds = len(differences)
    return Paired(
        difference=over_seeds(differences, level),
        t=t,
        p=p,
        exact=sign_flip(differences),
        smallest=smallest_p(seeds),
        seeds=seeds,
    )


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p of the sign-flip test.

    It is the share of sign patterns whose sum is at least as far from zero as the observed one.
    Up to 16 differences all 2^n patterns are tried; beyond that 2^16 random ones, the observed one
    among them.

    Args:
        differences: (seeds,) numbers.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0])
        0.25
    """
    values = _per_seed("sign_flip()", differences)
    if len(values) <= ENUMERATED:
        # Bit k of a pattern's number is the sign of difference k: (2^n patterns, n).
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (2**ENUMERATED, len(values)))
        signs[0] = 1  # the observed pattern
    sums = np.abs(signs @ values)  # (patterns,)
    # Sums that equal the observed one but for rounding count as reaching it.
    return float(np.mean(sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()))


def smallest_p(seeds: int) -> float:
    """The least p that a sign-flip test of n seeds can reach: 2 / 2^n.

    Example:
        >>> [smallest_p(n) for n in (1, 3, 6)]
        [1.0, 0.25, 0.03125]
    """
    return 2.0 / 2**seeds


def seeds_needed(level: float) -> int:
    """The fewest seeds whose smallest attainable p does not exceed `level`.

    Example:
        >>> seeds_needed(0.05)
        6
    """
    _check_level(level)
    # 2 / 2^n <= level  <=>  n >= 1 - log2(level)
    return max(1, math.ceil(1 - math.log2(level)))


def against(
    values: Mapping[str, Sequence[float]], baseline: str, level: float = 0.05
) -> dict[str, tuple[Paired, float]]:
    """Test every start against the baseline on the same seeds.

    This is the one family of tests against a baseline: every statement that a start is faster or
    better than the baseline uses these p values.

    Args:
        values: (seeds,) numbers of every start, in the same order of seeds.
        baseline: the start that the others are compared against; without its values there are no
            tests.
        level: the intervals cover 1 - level.

    Returns:
        The paired test of each start, and its p after Holm over the starts.

    Example:
        >>> steps = {"random": [9.0, 8.0, 9.5], "copied": [4.0, 5.0, 4.5], "gabor": [8.0, 9.0, 9.0]}
        >>> tests = against(steps, "random")
        >>> {name: round(adjusted, 3) for name, (_, adjusted) in tests.items()}
        {'copied': 0.046, 'gabor': 0.808}
    """
    if baseline not in values:
        return {}
    tests = {
        name: paired(values[name], values[baseline], level) for name in values if name != baseline
    }
    # Corrected over all starts; the baseline has no test.
    adjusted = holm([test.p for test in tests.values()], tests=len(tests))
    return {name: (test, p) for (name, test), p in zip(tests.items(), adjusted, strict=True)}


def answer(test: Paired, adjusted: float, level: float) -> str:
    """The answer of a test in words.

    Args:
        test: the paired test.
        adjusted: its p after Holm.
        level: of the test.

    Returns:
        "higher", "lower", "no difference shown", or "not decidable" if this many seeds cannot reach
        the level.

    Example:
        >>> three = paired([0.80, 0.84, 0.83], [0.70, 0.71, 0.74])
        >>> answer(three, three.p, level=0.05), answer(three, three.p, level=0.25)
        ('not decidable', 'higher')
    """
    if test.smallest > level or math.isnan(adjusted):
        return "not decidable"
    if adjusted >= level:
        return "no difference shown"
    return "higher" if test.difference.mean > 0 else "lower"


def _per_seed(call: str, values: Any) -> np.ndarray:
    """The values as (seeds,) float64."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{call} needs a list of numbers, one for each seed, not {values!r:.60}"
        ) from error
    if array.ndim != 1:
        raise ValueError(
            f"{call} needs a list of numbers, one for each seed, not {values!r:.60} of shape"
            f" {array.shape}"
        )
    return array


def _check_level(level: Any) -> None:
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1, such as 0.05")
