"""Chance level: the same measure with the examples of one side shuffled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import check_draws, check_groups
from metalearn.analysis.measures.cca import CCA_FAMILY, cca_forms, check_energy
from metalearn.analysis.measures.cka import check_fraction, linear_forms, rbf_forms
from metalearn.analysis.measures.inputs import Activations, Matrix, activations, same
from metalearn.analysis.measures.prepared import Form
from metalearn.analysis.measures.procrustes import procrustes_forms
from metalearn.analysis.measures.subspace import check_k, subspace_forms
from metalearn.runtime.renamed import warn_renamed

MANY_DRAWS = 200
FEW_DRAWS = 20

# Floating-point operations of all draws that take about a second of one core.
CHEAP = 2e9


class Floor(NamedTuple):
    """The chance level: the score of unrelated features.

    Examples are shuffled, or neurons for the measure `subspace`.

    Attributes:
        median: the median over draws.
        upper: the 95 % quantile over draws.
        draws: how often one side was shuffled.
    """

    median: float
    upper: float
    draws: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> Floor:
        """The chance level of shuffled values (draws,); NaN without draws."""
        if not len(values):
            return cls(math.nan, math.nan)
        return cls(float(np.median(values)), float(np.quantile(values, 0.95)), len(values))


def arrangements(groups: int) -> float:
    """How many orders of the groups `rearranged` chooses from.

    These are the cycles through all groups, (groups - 1)! of them; a single group has none.

    Example:
        >>> arrangements(1), arrangements(2), arrangements(4)
        (0.0, 1.0, 6.0)
    """
    if groups <= 1:
        return 0.0
    return math.gamma(min(groups, 100))  # 99! stands for "many"


def operations(name: str, examples: int, features: tuple[int, int]) -> float:
    """Approximate floating-point operations of one draw, with both sides decomposed already.

    Args:
        name: a measure by its function's name.
        examples: how many examples there are.
        features: the widths of both sides.

    Example:
        >>> operations("cca", 300, (32, 32)) * MANY_DRAWS < CHEAP
        True
        >>> operations("cca", 30_000, (512, 512)) * MANY_DRAWS < CHEAP
        False
    """
    x, y = features
    products = 2.0 * examples * x * y  # X^T Y
    if name in CCA_FAMILY or name == "procrustes":
        singular_values = 20.0 * min(x, y, examples) ** 3
        return products + singular_values
    if name == "subspace":
        return 2.0 * x * y
    # Half of the pairs of examples, but reading each takes longer than its product.
    pairs = 2.0 * examples**2
    if name == "linear_cka":  # as columns or as Gram matrices
        return min(products, pairs)
    return pairs


def chosen_draws(draws: int | None, operations: float) -> int:
    """How often to shuffle for the chance level: `draws`, or 200 times if that is cheap, else 20.

    Cheap means at most 2e9 operations in all, about a second of one core. The rule counts
    operations instead of measuring time, so the same call gives the same numbers everywhere. Of
    unrelated pairs, 8 % exceed the 95 % quantile of 20 draws, and 5 % that of 200.

    Args:
        draws: the requested number, or None.
        operations: of one draw, over everything that is shuffled.

    Example:
        >>> chosen_draws(None, 1e6), chosen_draws(None, 1e9), chosen_draws(7, 1e9)
        (200, 20, 7)
    """
    if draws is not None:
        return draws
    return MANY_DRAWS if MANY_DRAWS * operations <= CHEAP else FEW_DRAWS


def measured(
    name: str,
    x: Matrix,
    y: Matrix,
    *,
    groups: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    units: int | None = None,
    **options: Any,
) -> tuple[float, np.ndarray]:
    """A similarity, and its values with whole groups of examples of `y` shuffled.

    Rows of one image (or one task) are not independent, so shuffling rows would understate the
    chance level. The rows are therefore divided into `groups` equal consecutive blocks, and no
    block keeps its place. A single group has no other place, so there are no draws. `subspace`
    ignores the order of examples, so its neurons are shuffled instead. Each matrix is decomposed
    once.

    Args:
        name: a measure by its function's name, such as "cca" or "linear_cka".
        x: (examples, features).
        y: (examples, other features).
        groups: how many equal consecutive blocks of rows are shuffled whole; by default each row is
            one.
        draws: how often `y` is shuffled; by default 200 times if that is cheap, else 20
            (`chosen_draws`).
        seed: determines the draws.
        units: the former name of `groups`.
        **options: the options of that measure.

    Returns:
        The similarity, and its values under chance (draws,).

    Raises:
        ValueError: as the measure does; also for an unknown measure or option, or if the rows do
            not divide into `groups`.

    Example:
        >>> x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
        >>> value, chance = measured("cca", x, 2 * x)
        >>> round(value, 6), Floor.of(chance).upper < 0.2
        (1.0, True)
    """
    if units is not None:
        warn_renamed("measured(units=)", "measured(groups=)")
        groups = units
    left = activations(x, "x")
    right = activations(y, "y")
    before, after = forms(name, left, right, **options)
    rows = len(left.values)
    groups = rows if groups is None else groups
    draws, seed = check_draws(draws, seed)
    check_groups(groups, rows)
    widths = left.values.shape[1], right.values.shape[1]
    draws = chosen_draws(draws, operations(name, rows, widths))
    generator = torch.Generator().manual_seed(seed)
    orders = rearranged(rows, groups, generator, draws if groups > 1 else 0)  # (draws, rows)
    values = before.chance(after, orders.to(left.values.device), generator)
    chance = values.clamp(max=1.0).cpu().numpy()
    # Equal matrices score exactly 1, without the rounding of the last bit.
    similarity = 1.0 if same(left, right) else before.similarity(after)
    return similarity, chance


def forms(name: str, x: Activations, y: Activations, **options: Any) -> tuple[Form, Form]:
    """Both matrices in the form that the measure needs, decomposed once."""
    check_options(name, options)
    return MEASURES[name](x, y, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown measure, or an option that is unknown, missing or invalid."""
    if name not in MEASURES:
        raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
    known = list(signature(MEASURES[name]).parameters)[2:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    if name == "subspace" and "k" not in options:
        raise ValueError("subspace needs k=, how many principal directions are compared")
    checks = {"k": check_k, "energy": check_energy, "fraction": check_fraction}
    for option, check in checks.items():
        if option in options:
            check(options[option])


def rearranged(
    rows: int, groups: int, generator: torch.Generator, draws: int | None = None
) -> Tensor:
    """Random orders of rows in which no group of rows keeps its place.

    Plain permutations of few groups would leave some of them matched.

    Args:
        rows: how many rows there are.
        groups: how many equal consecutive blocks they form; a block stays whole.
        generator: the source of randomness.
        draws: how many orders to return; None returns one, without a first dimension.

    Returns:
        Indices (draws, rows), or (rows,).
    """
    if draws is None:
        return rearranged(rows, groups, generator, 1)[0]
    # A random permutation of the groups in each row, read as a cycle: every group is replaced by
    # the one before it in the cycle, so none stays.
    cycles = torch.rand(draws, groups, generator=generator).argsort(1)  # (draws, groups)
    order = torch.empty_like(cycles).scatter_(1, cycles, cycles.roll(1, 1))  # (draws, groups)
    rows_of_groups = torch.arange(rows).reshape(groups, -1)  # (groups, rows of a group)
    return rows_of_groups[order].flatten(1)  # (draws, rows)


def _cca(x: Activations, y: Activations) -> tuple[Form, Form]:
    return cca_forms(x, y)


def _svcca(x: Activations, y: Activations, energy: float = 0.99) -> tuple[Form, Form]:
    return cca_forms(x, y, energy)


def _pwcca(x: Activations, y: Activations) -> tuple[Form, Form]:
    return cca_forms(x, y, weighted=True)


# Each measure's preparation; its parameters after the first two are the measure's options.
MEASURES: dict[str, Callable[..., tuple[Form, Form]]] = {
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "linear_cka": linear_forms,
    "rbf_cka": rbf_forms,
    "procrustes": procrustes_forms,
    "subspace": subspace_forms,
}
