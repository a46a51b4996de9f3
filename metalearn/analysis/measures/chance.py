"""What unrelated matrices score: the same measure with the examples of one side shuffled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import check_draws, check_units
from metalearn.analysis.measures.cca import CCA_FAMILY, _cca_forms, check_energy
from metalearn.analysis.measures.cka import _linear_forms, _rbf_forms, check_fraction
from metalearn.analysis.measures.inputs import same
from metalearn.analysis.measures.prepared import Form
from metalearn.analysis.measures.procrustes import _procrustes_forms
from metalearn.analysis.measures.subspace import _subspace_forms, check_k

from .inputs import Activations, Matrix, activations

MANY_DRAWS = 200
FEW_DRAWS = 20
CHEAP = 2e9  # floating-point operations


class Floor(NamedTuple):
    """What unrelated features score: `median` and 95 % quantile `upper` of the measure with one
    side shuffled `draws` times.

    Examples are shuffled, or neurons where the measure is `subspace`.
    """

    median: float
    upper: float
    draws: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> Floor:
        """The floor from shuffled values (draws,); NaN where there are none."""
        if not len(values):
            return cls(math.nan, math.nan)
        return cls(float(np.median(values)), float(np.quantile(values, 0.95)), len(values))


def arrangements(units: int) -> float:
    """How many orders of `units` the floor draws from: cycles through all of them, (units - 1)!;
    none for a single one.

    Example:
        >>> arrangements(1), arrangements(2), arrangements(4)
        (0.0, 1.0, 6.0)
    """
    return math.gamma(min(units, 100)) if units > 1 else 0.0


def operations(name: str, examples: int, features: tuple[int, int]) -> float:
    """About how many floating-point operations one draw of the floor takes, with both sides
    decomposed already.

    Example:
        >>> operations("cca", 300, (32, 32)) * MANY_DRAWS < CHEAP < operations("cca", 30_000, (512, 512)) * MANY_DRAWS
        True
    """
    x, y = features
    products = 2.0 * examples * x * y
    if name in CCA_FAMILY or name == "procrustes":
        return (
            products + 20.0 * min(x, y, examples) ** 3
        )  # and the singular values of a square matrix
    if name == "subspace":
        return 2.0 * x * y
    pairs = (
        2.0 * examples**2
    )  # half of the pairs of examples, whose look-up takes longer than the product
    return min(products, pairs) if name == "linear_cka" else pairs


def chosen_draws(draws: int | None, operations: float) -> int:
    """How often the floor shuffles: `draws` if given; otherwise 200 times if that is cheap, and 20
    times if not.

    Cheap means at most 2e9 operations in all, which is about a second of one core. The rule counts
    operations instead of taking the time, so the same call gives the same numbers everywhere. Of
    unrelated pairs, 8 % exceed the 95 % quantile of 20 draws and 5 % that of 200.

    Args:
        draws: the number that was given, or None.
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
    units: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[float, np.ndarray]:
    """A similarity and its values with whole units of `y` shuffled -> (similarity, (draws,)).

    Rows of one image (or one task) are not independent, so shuffling rows would understate what
    chance scores: the rows are `units` equal consecutive blocks, and no block keeps its place. Each
    matrix is decomposed once. A single unit has no other place: no draws. `subspace` does not
    depend on the order of examples, so its neurons are shuffled instead.

    Args:
        name: a measure by its function's name, such as "cca" or "linear_cka"; `options` are that
            function's.
        x, y: (examples, features), as many examples in both.
        units: how many blocks the rows are made of; each row is one by default.
        draws: how often `y` is shuffled; by default 200 times if that is cheap, else 20
            (`chosen_draws`).
        seed: what the draws depend on.

    Example:
        >>> x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
        >>> value, chance = measured("cca", x, 2 * x)
        >>> round(value, 6), Floor.of(chance).upper < 0.2
        (1.0, True)
    """
    left, right = activations(x, "x"), activations(y, "y")
    before, after = forms(name, left, right, **options)
    rows = len(left.values)
    units = rows if units is None else units
    draws, seed = check_draws(draws, seed)
    check_units(units, rows)
    draws = chosen_draws(
        draws, operations(name, rows, (left.values.shape[1], right.values.shape[1]))
    )
    generator = torch.Generator().manual_seed(seed)
    orders = rearranged(rows, units, generator, draws if units > 1 else 0).to(left.values.device)
    chance = before.chance(after, orders, generator).clamp(max=1.0).cpu().numpy()
    # The same numbers are the same network: exactly 1, without the last bit of a square root.
    return (1.0 if same(left, right) else before.similarity(after)), chance


def forms(name: str, x: Activations, y: Activations, **options: Any) -> tuple[Form, Form]:
    """Both matrices as the measure `name` needs them: decomposed or multiplied out once, then
    compared or shuffled at little cost.
    """
    check_options(name, options)
    return MEASURES[name](x, y, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for a measure or an option that does not exist, or an option without which
    or with which there is no value.
    """
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
    rows: int, units: int, generator: torch.Generator, draws: int | None = None
) -> Tensor:
    """An order of `rows` (rows,) in which none of its `units` equal consecutive blocks keeps its
    place, each kept whole.

    With `draws` so many orders (draws, rows). With few units, plain permutations would leave some
    matched.
    """
    if draws is None:
        return rearranged(rows, units, generator, 1)[0]
    turns = torch.rand(draws, units, generator=generator).argsort(
        1
    )  # (draws, units), a random permutation in each row
    # Every unit is replaced by the one before it in that permutation.
    blocks = torch.empty_like(turns).scatter_(1, turns, turns.roll(1, 1))
    return torch.arange(rows).reshape(units, -1)[blocks].flatten(1)


MEASURES: dict[str, Callable[..., tuple[Form, Form]]] = {
    "cca": lambda x, y: _cca_forms(x, y),
    "svcca": lambda x, y, energy=0.99: _cca_forms(x, y, energy),
    "pwcca": lambda x, y: _cca_forms(x, y, weighted=True),
    "linear_cka": _linear_forms,
    "rbf_cka": _rbf_forms,
    "procrustes": _procrustes_forms,
    "subspace": _subspace_forms,
}
