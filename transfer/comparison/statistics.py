"""Whether a difference between starts is more than the luck of a few seeds."""

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
    """The mean over seeds with the half-width of its t interval, `t(n - 1) std(ddof=1) / sqrt(n)`;
    NaN where one seed gives none.

    Example:
        >>> over_seeds([0.8, 0.9, 1.0])
        Estimate(mean=0.9, interval=0.248...)
    """
    array = _per_seed("over_seeds()", values)
    _check_level(level)
    if not len(array):
        raise ValueError("over_seeds() got no values; give one a seed")
    if len(array) < 2:
        return Estimate(float(array.mean()), math.nan)
    from scipy import stats  # here, since it takes long to import

    return Estimate(
        float(array.mean()), float(stats.t.ppf(1 - level / 2, len(array) - 1) * stats.sem(array))
    )


@dataclass(frozen=True)
class Paired:
    """One start against another on the same seeds: the mean difference with its t interval, and two
    tests of it being zero.

    `t` and `p` are the paired t test's, which takes differences for normal. `exact` is the
    sign-flip test's, which takes them for symmetric about zero alone: the share of the 2^n patterns
    of signs whose mean is as far from zero as this one. `smallest` is the least that `exact` can be
    with this many seeds, 2 / 2^n. `p` is NaN where all differences are one number other than zero.
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
    """Compare two measurements of each seed, `mean(a - b)` -> `Paired`.

    Args:
        a, b: (seeds,) each, in the same order of seeds.
        level: of the interval, which covers 1 - level.

    Raises ValueError where the two differ in length, are empty, or hold a value that is not finite.

    Example:
        >>> found = paired([0.80, 0.84, 0.83], [0.70, 0.71, 0.74])
        >>> round(found.difference.mean, 4), round(found.p, 4), found.exact
        (0.1067, 0.0125, 0.25)
        >>> print(found)
        +0.1067 ± 0.05171 (t = 8.88, p = 0.012; sign flip p = 0.25; 3 seeds)
    """
    first, second = _per_seed("paired()", a), _per_seed("paired()", b)
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"paired() needs as many values of one as of the other, a seed each, not {first.shape}"
            f" and {second.shape}"
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError(
            f"paired() got a value that is not finite: {first.tolist()} against {second.tolist()}"
        )
    t, p = t_test(differences)
    count = len(differences)
    return Paired(
        over_seeds(differences, level), t, p, sign_flip(differences), smallest_p(count), count
    )


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p of the sign-flip test: the share of sign patterns whose sum is at least as
    far from zero.

    All 2^n patterns up to 16 differences; beyond that 2^16 random ones and the one that was seen.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0])
        0.25
    """
    values = _per_seed("sign_flip()", differences)
    if len(values) <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (2**ENUMERATED, len(values)))
        signs[0] = 1
    sums = np.abs(signs @ values)
    return float(np.mean(sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()))


def smallest_p(seeds: int) -> float:
    """The least p that a sign-flip test of so many seeds can reach: 2 / 2^n.

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
    return max(1, math.ceil(1 - math.log2(level)))


def against(
    values: Mapping[str, Sequence[float]], baseline: str, level: float = 0.05
) -> dict[str, tuple[Paired, float]]:
    """Every start against the baseline on the same seeds -> the paired tests, each with its p after
    Holm over the starts.

    This is the one family of tests against a baseline: whatever says that a start is faster or
    better than it takes this p.

    Args:
        values: (seeds,) numbers of every start, in the same order of seeds.
        baseline: the start that the others are compared against; without its values there are no
            tests.
        level: of the intervals, which cover 1 - level.

    Example:
        >>> tests = against({"random": [9.0, 8.0, 9.5], "copied": [4.0, 5.0, 4.5], "gabor": [8.0, 9.0, 9.0]}, "random")
        >>> {name: round(adjusted, 3) for name, (_, adjusted) in tests.items()}
        {'copied': 0.046, 'gabor': 0.808}
    """
    if baseline not in values:
        return {}
    tests = {
        name: paired(values[name], values[baseline], level) for name in values if name != baseline
    }
    adjusted = holm([test.p for test in tests.values()], tests=len(tests))
    return {name: (test, p) for (name, test), p in zip(tests.items(), adjusted, strict=True)}


def answer(found: Paired, adjusted: float, level: float) -> str:
    """ "higher", "lower", "no difference shown", or "not decidable" where this many seeds cannot
    reach the level.

    Example:
        >>> three = paired([0.80, 0.84, 0.83], [0.70, 0.71, 0.74])
        >>> answer(three, three.p, level=0.05), answer(three, three.p, level=0.25)
        ('not decidable', 'higher')
    """
    if found.smallest > level or math.isnan(adjusted):
        return "not decidable"
    if adjusted >= level:
        return "no difference shown"
    return "higher" if found.difference.mean > 0 else "lower"


def _per_seed(call: str, values: Any) -> np.ndarray:
    """The values as (seeds,) float64."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{call} needs a list of numbers, one a seed, not {values!r:.60}"
        ) from error
    if array.ndim != 1:
        raise ValueError(
            f"{call} needs a list of numbers, one a seed, not {values!r:.60} of shape {array.shape}"
        )
    return array


def _check_level(level: Any) -> None:
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1, such as 0.05")
