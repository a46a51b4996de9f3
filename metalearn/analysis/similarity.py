"""How alike two matrices of activations are, up to the maps that a measure calls the same.

Every measure takes (examples, features) twice, as torch or numpy of any real dtype, computes in float64, and returns a
similarity: 1 for the same, never a distance. What each one ignores, of either side: `cca` any invertible linear map (as
`pwcca` does of its second side); `svcca`, CKA and Procrustes rotation and scale; `subspace` scale, and a rotation only
where it is of both; and all of them the mean. Unrelated matrices score high at few examples and many features, so a number
is read beside its `floor`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_draws, check_units, is_number, is_whole
from .matrices import Activations, Matrix, activations, enough

CCA_FAMILY = ("cca", "svcca", "pwcca")
MANY_DRAWS = 200
FEW_DRAWS = 20
CHEAP = 2e9  # floating-point operations
GATHERED = 2**21  # entries of shuffled matrices that are held at a time

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


class Undefined(ValueError):
    """The measure says nothing about these matrices: no variance, or too few examples for their directions."""


def canonical_correlations(x: Matrix, y: Matrix) -> np.ndarray:
    """All canonical correlations of two matrices, largest first: the singular values of `Q_x^T Q_y`, clipped to [0, 1].

    `Q` is an orthonormal basis of the centred columns, from a singular value decomposition. Constant features are dropped, and so are
    directions that are rounding: those below 1e-10 of the largest (3e-7 for float32 and narrower dtypes, since the output of layer norm
    sums to a constant), and those no larger than the rounding of values of this dtype and size (Hotelling 1936; Raghu et al. 2017,
    arXiv:1706.05806). Values that were cast to a wider dtype count as what they were before.

    Args:
        x, y: (examples, features), as many examples in both.

    Raises:
        ValueError: different numbers of examples, a value that is not finite, no variance, or examples that do not exceed the directions.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> canonical_correlations(x, x[:, :2] @ torch.tensor([[1.0, 2.0], [0.0, 3.0]])).round(6)
        array([1., 1.])
    """
    before, after = _cca_forms(activations(x, "x"), activations(y, "y"))
    return torch.linalg.svdvals(before.basis.T @ after.basis).clamp(0, 1).cpu().numpy()


def cca(x: Matrix, y: Matrix) -> float:
    """Mean canonical correlation of (examples, features) twice: `mean(rho)` over `min(rank x, rank y)` correlations.

    Raises ValueError as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(cca(x, x * torch.tensor([1.0, 10.0, 100.0]) + 5), 6)
        1.0
    """
    return _similarity("cca", x, y)


def svcca(x: Matrix, y: Matrix, energy: float = 0.99) -> float:
    """Mean canonical correlation of the leading directions: those that hold `energy` of the sum of s² of each centred matrix.

    Raghu et al. 2017 (arXiv:1706.05806). Directions whose singular values tie with the last one kept are all kept, since any rotation of
    them would do as well. Raises ValueError as `canonical_correlations` does, counting only the directions kept.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(svcca(x, 2 * x), 6)
        1.0
    """
    return _similarity("svcca", x, y, energy=energy)


def pwcca(x: Matrix, y: Matrix) -> float:
    """Canonical correlations weighted by how much of `x` each direction explains; not symmetric.

    `sum_i a_i rho_i / sum_i a_i` with `a_i = sum_j |<h_i, x_j>|`, `h_i` the canonical directions of `x` and `x_j` its centred columns,
    whatever the widths (Morcos et al. 2018, arXiv:1806.05759). Where correlations tie, the directions are free to rotate, and each of them
    has the mean weight over all rotations. Raises ValueError as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(pwcca(x, -x), 6)
        1.0
    """
    return _similarity("pwcca", x, y)


def linear_cka(x: Matrix, y: Matrix, debiased: bool = True) -> float:
    """Linear centred kernel alignment: `||Y^T X||² / (||X^T X|| ||Y^T Y||)` of the centred matrices, Frobenius norms.

    Kornblith et al. 2019 (arXiv:1905.00414). `debiased` takes the U-statistic of Song et al. (2007) for each of the three terms: about
    0 for unrelated matrices at any width (it may be negative), where the biased value of 75 examples in thousands of features is near 1.

    Args:
        x, y: (examples, features), as many examples in both; at least 4 where debiased.

    Raises:
        ValueError: different numbers of examples, too few, a value that is not finite, or no variance.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(75, 4000, generator=rng), torch.randn(75, 4000, generator=rng)
        >>> round(linear_cka(x, y, debiased=False), 2), round(linear_cka(x, y), 2)
        (0.98, 0.01)
    """
    return _similarity("linear_cka", x, y, debiased=debiased)


def rbf_cka(x: Matrix, y: Matrix, fraction: float = 0.5, debiased: bool = False) -> float:
    """CKA with the kernel `exp(-D² / (2 fraction² median(D²)))`, the median over squared distances with the zero diagonal.

    Kornblith et al. 2019 (arXiv:1905.00414). Arguments and errors as `linear_cka`'s; holds an examples x examples matrix.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(rbf_cka(x, 3 * x + 1), 6)
        1.0
    """
    return _similarity("rbf_cka", x, y, fraction=fraction, debiased=debiased)


def procrustes(x: Matrix, y: Matrix) -> float:
    """How well a rotation and a scale take one centred matrix to the other: `||X^T Y||_* / (||X||_F ||Y||_F)`.

    The nuclear norm over the product of Frobenius norms (Ding et al. 2021, arXiv:2108.01661, as a similarity). Any widths.
    Raises ValueError as `linear_cka` does.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(procrustes(x, -2 * x.flip(1)), 6)
        1.0
    """
    return _similarity("procrustes", x, y)


def subspace(x: Matrix, y: Matrix, k: int) -> float:
    """How much of one side's `k` principal directions lies in the other's: `||V_k^T U_k||² / k`, Frobenius norm.

    `V_k` and `U_k` (features, k) are the leading right singular vectors of the centred matrices, so feature i must be the same neuron in
    both: one network before and after training, or on two tasks (Ramasesh et al. 2021, arXiv:2007.07400). Unrelated subspaces score
    about k / features. Where the k-th singular value ties with others, all directions that tie count, each in part. The floor shuffles
    neurons, since the order of examples is nothing to this measure.

    Args:
        x, y: (examples, features), as many of both in both.
        k: how many directions, from 1 to those that vary.

    Raises:
        ValueError: as `linear_cka` does, and where the widths differ or fewer than `k` directions vary.

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5.0, 1.0, 0.1])
        >>> round(subspace(x, 2 * x + 1, k=2), 6), round(subspace(x, x.flip(1), k=2), 2)
        (1.0, 0.0)
    """
    return _similarity("subspace", x, y, k=k)


class Floor(NamedTuple):
    """What unrelated features score: `median` and 95 % quantile `upper` of the measure with one side shuffled `draws` times.

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


def p_value(similarity: float, chance: np.ndarray, orders: float = math.inf) -> float:
    """The add-one p value of a similarity under chance: `(1 + #{draw >= similarity}) / (1 + draws)`, never 0.

    Draws that equal the similarity but for rounding count as reaching it.

    Args:
        similarity: the measured value.
        chance: (draws,) the values with one side shuffled.
        orders: how many different shuffles there are. Repeating one is no further evidence, so p is at least `1 / (1 + orders)`.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979): the chance of any false positive stays below the level they are compared with.

    NaN stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        [0.03, 0.06, nan, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def arrangements(units: int) -> float:
    """How many orders of `units` the floor draws from: cycles through all of them, (units - 1)!; none for a single one.

    Example:
        >>> arrangements(1), arrangements(2), arrangements(4)
        (0.0, 1.0, 6.0)
    """
    return math.gamma(min(units, 100)) if units > 1 else 0.0


def operations(name: str, examples: int, features: tuple[int, int]) -> float:
    """About how many floating-point operations one draw of the floor takes, with both sides decomposed already.

    Example:
        >>> operations("cca", 300, (32, 32)) * MANY_DRAWS < CHEAP < operations("cca", 30_000, (512, 512)) * MANY_DRAWS
        True
    """
    x, y = features
    products = 2.0 * examples * x * y
    if name in CCA_FAMILY or name == "procrustes":
        return products + 20.0 * min(x, y, examples) ** 3  # and the singular values of a square matrix
    if name == "subspace":
        return 2.0 * x * y
    pairs = 2.0 * examples**2  # half of the pairs of examples, whose look-up takes longer than the product
    return min(products, pairs) if name == "linear_cka" else pairs


def chosen_draws(draws: int | None, operations: float) -> int:
    """How often the floor shuffles: `draws` if given; otherwise 200 times if that is cheap, and 20 times if not.

    Cheap means at most 2e9 operations in all, which is about a second of one core. The rule counts operations instead of taking the time,
    so the same call gives the same numbers everywhere. Of unrelated pairs, 8 % exceed the 95 % quantile of 20 draws and 5 % that of 200.

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
    name: str, x: Matrix, y: Matrix, *, units: int | None = None, draws: int | None = None, seed: int = 0, **options: Any
) -> tuple[float, np.ndarray]:
    """A similarity and its values with whole units of `y` shuffled -> (similarity, (draws,)).

    Rows of one image (or one task) are not independent, so shuffling rows would understate what chance scores: the rows are `units`
    equal consecutive blocks, and no block keeps its place. Each matrix is decomposed once. A single unit has no other place: no draws.
    `subspace` does not depend on the order of examples, so its neurons are shuffled instead.

    Args:
        name: a measure by its function's name, such as "cca" or "linear_cka"; `options` are that function's.
        x, y: (examples, features), as many examples in both.
        units: how many blocks the rows are made of; each row is one by default.
        draws: how often `y` is shuffled; by default 200 times if that is cheap, else 20 (`chosen_draws`).
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
    draws = chosen_draws(draws, operations(name, rows, (left.values.shape[1], right.values.shape[1])))
    generator = torch.Generator().manual_seed(seed)
    orders = rearranged(rows, units, generator, draws if units > 1 else 0).to(left.values.device)
    chance = before.chance(after, orders, generator).clamp(max=1.0).cpu().numpy()
    # The same numbers are the same network: exactly 1, without the last bit of a square root.
    return (1.0 if same(left, right) else before.similarity(after)), chance


def forms(name: str, x: Activations, y: Activations, **options: Any) -> tuple[Form, Form]:
    """Both matrices as the measure `name` needs them: decomposed or multiplied out once, then compared or shuffled at little cost."""
    check_options(name, options)
    return MEASURES[name](x, y, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for a measure or an option that does not exist, or an option without which or with which there is no value."""
    if name not in MEASURES:
        raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
    known = list(signature(MEASURES[name]).parameters)[2:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    if name == "subspace" and "k" not in options:
        raise ValueError("subspace needs k=, how many principal directions are compared")
    k, energy, fraction = (options.get(option, 1) for option in ("k", "energy", "fraction"))
    if not is_whole(k) or k < 1:
        raise ValueError(f"k={k!r} must be at least 1 and whole: it is how many principal directions are compared")
    if not is_number(energy) or not 0 < energy <= 1:
        raise ValueError(f"energy={energy} must lie in (0, 1]; 0.99 keeps the directions that hold 99 % of the variance")
    if not is_number(fraction) or not 0 < fraction < math.inf:
        raise ValueError(f"fraction={fraction} must be above 0 and finite: it is the kernel's width as a fraction of the median distance")


class Form(Protocol):
    """One side of a comparison, prepared."""

    def similarity(self, other: Any) -> float:
        """The measure's value against the other side."""

    def chance(self, other: Any, orders: Tensor, generator: torch.Generator) -> Tensor:
        """The values with the other side's examples in each of `orders` (draws, examples) -> (draws,).

        If that changes nothing, its neurons are shuffled by the generator.
        """


def rearranged(rows: int, units: int, generator: torch.Generator, draws: int | None = None) -> Tensor:
    """An order of `rows` (rows,) in which none of its `units` equal consecutive blocks keeps its place, each kept whole.

    With `draws` so many orders (draws, rows). With few units, plain permutations would leave some matched.
    """
    if draws is None:
        return rearranged(rows, units, generator, 1)[0]
    turns = torch.rand(draws, units, generator=generator).argsort(1)  # (draws, units), a random permutation in each row
    # Every unit is replaced by the one before it in that permutation.
    blocks = torch.empty_like(turns).scatter_(1, turns, turns.roll(1, 1))
    return torch.arange(rows).reshape(units, -1)[blocks].flatten(1)


def _shuffled(rows: Tensor, orders: Tensor) -> Iterator[Tensor]:
    """(examples, features) in each of `orders` (draws, examples) -> (draws, examples, features), some draws at a time."""
    for some in orders.split(max(1, GATHERED // rows.numel())):
        yield rows[some]


def _joined(values: Iterable[Tensor], like: Tensor) -> Tensor:
    return torch.cat([like.new_zeros(0), *values])


@dataclass(frozen=True)
class _Directions:
    """An orthonormal `basis` (examples, directions) and the centred columns in it, `coordinates` (directions, features)."""

    basis: Tensor
    coordinates: Tensor
    weighted: bool
    ties: float

    def similarity(self, other: _Directions) -> float:
        cross = self.basis.T @ other.basis
        return weighted_correlation(cross, self.coordinates, max(self.ties, other.ties)) if self.weighted else mean_correlation(cross)

    def chance(self, other: _Directions, orders: Tensor, generator: torch.Generator) -> Tensor:
        if self.weighted:
            return self.basis.new_tensor([self.similarity(replace(other, basis=other.basis[order])) for order in orders])
        crosses = (self.basis.T @ bases for bases in _shuffled(other.basis, orders))  # (draws, directions of x, directions of y)
        return _joined((torch.linalg.svdvals(cross).clamp(0, 1).mean(1) for cross in crosses), self.basis)


def mean_correlation(cross: Tensor) -> float:
    """The mean of the singular values of `cross`, `Q_x^T Q_y` (directions of x, directions of y)."""
    return float(torch.linalg.svdvals(cross).clamp(0, 1).mean())


def weighted_correlation(cross: Tensor, columns: Tensor, ties: float) -> float:
    """The mean of the singular values of `cross`, weighted as PWCCA does.

    The canonical directions of correlations that tie may be rotated among themselves. Over all rotations, the mean of `|<h, x_j>|` for
    a unit vector h of an m-dimensional space is the length of the projection of `x_j` on it times `Γ(m/2) / (√π Γ((m+1)/2))`; for m = 1
    that is `|<h, x_j>|` itself.

    Args:
        cross: (directions of x, directions of y), `Q_x^T Q_y`.
        columns: (directions of x, features), `Q_x^T X`.
        ties: correlations tie where each is within this of the next.
    """
    # With more directions of x than of y, those that are left over have the correlation 0, and tie with others that do.
    u, rho, _ = torch.linalg.svd(cross, full_matrices=cross.shape[0] > cross.shape[1])
    count, rho = len(rho), F.pad(rho.clamp(0, 1), (0, u.shape[1] - len(rho)))  # (directions of x,) or fewer
    group = F.pad((rho[:-1] - rho[1:] > ties).cumsum(0), (1, 0))  # (directions,), the number of each one's group
    size = torch.bincount(group).to(rho)  # (groups,)
    squares = rho.new_zeros(len(size), columns.shape[1]).index_add_(0, group, (u.T @ columns).square())
    lengths = squares.sqrt().sum(1)  # (groups,), of all columns projected on the space of the group
    shares = torch.exp(torch.lgamma(size / 2) - torch.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
    weights = (shares * lengths)[group]
    return float(weights[:count] @ rho[:count] / weights[:count].sum())


@dataclass(frozen=True)
class _Gram:
    """A centred kernel matrix (examples, examples) of norm 1."""

    kernel: Tensor

    def similarity(self, other: _Gram) -> float:
        return min(1.0, float((self.kernel * other.kernel).sum()))

    def chance(self, other: _Gram, orders: Tensor, generator: torch.Generator) -> Tensor:
        n = len(self.kernel)
        i, j = torch.tril_indices(n, n, device=self.kernel.device)
        # Kernels are symmetric: a pair below the diagonal stands for two.
        weights = torch.where(i == j, 1.0, 2.0).to(self.kernel) * self.kernel[i, j]  # (pairs,)
        entries = other.kernel.flatten()
        some = orders.split(max(1, GATHERED // len(i)))
        return _joined((entries[order[:, i] * n + order[:, j]] @ weights for order in some), self.kernel)


@dataclass(frozen=True)
class _Columns:
    """Centred columns (examples, features), scaled so that the alignment with itself is 1: linear CKA for more examples than features."""

    columns: Tensor
    debiased: bool

    def alignment(self, other: _Columns) -> float:
        x, y, n = self.columns, other.columns, len(self.columns)
        cross = float((x.T @ y).square().sum())
        if not self.debiased:
            return cross
        rows_x, rows_y = x.square().sum(1), y.square().sum(1)
        return cross - n / (n - 2) * float(rows_x @ rows_y) + float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))

    def similarity(self, other: _Columns) -> float:
        return min(1.0, self.alignment(other))

    def chance(self, other: _Columns, orders: Tensor, generator: torch.Generator) -> Tensor:
        shuffled = _shuffled(other.columns, orders)
        crosses = _joined(((self.columns.T @ columns).square().sum((1, 2)) for columns in shuffled), self.columns)
        return self._debiased(other, crosses, orders) if self.debiased else crosses

    def _debiased(self, other: _Columns, crosses: Tensor, orders: Tensor) -> Tensor:
        n, rows_x, rows_y = len(self.columns), self.columns.square().sum(1), other.columns.square().sum(1)
        return crosses - n / (n - 2) * (rows_y[orders] @ rows_x) + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))


@dataclass(frozen=True)
class _Shape:
    """Centred columns (examples, features) of Frobenius norm 1."""

    columns: Tensor

    def similarity(self, other: _Shape) -> float:
        return min(1.0, float(torch.linalg.svdvals(self.columns.T @ other.columns).sum()))

    def chance(self, other: _Shape, orders: Tensor, generator: torch.Generator) -> Tensor:
        crosses = (self.columns.T @ columns for columns in _shuffled(other.columns, orders))
        return _joined((torch.linalg.svdvals(cross).sum(1) for cross in crosses), self.columns)


@dataclass(frozen=True)
class Principal:
    """The leading principal directions in neuron space, `axes` (features, directions), scaled so that the overlap with itself is 1."""

    axes: Tensor

    @classmethod
    def of(cls, axes: Tensor, scales: Tensor, k: int, ties: float) -> Principal:
        """The first `k` of orthonormal `axes` (features, directions) with the singular values `scales` (directions,), largest first.

        Of m directions that tie with the k-th, r of which are among the first k, each counts by r / m.
        """
        above = int((scales * (1 - ties) > scales[k - 1]).sum())
        reach = int((scales >= scales[k - 1] * (1 - ties)).sum())
        shares = torch.ones_like(scales[:reach])
        shares[above:] = (k - above) / (reach - above)
        return cls(axes[:, :reach] * shares.sqrt() / shares.square().sum() ** 0.25)

    def similarity(self, other: Principal) -> float:
        return min(1.0, float((self.axes.T @ other.axes).square().sum()))

    def chance(self, other: Principal, orders: Tensor, generator: torch.Generator) -> Tensor:
        neurons = [torch.randperm(len(self.axes), generator=generator).to(self.axes.device) for _ in orders]
        return self.axes.new_tensor([self.similarity(Principal(other.axes[order])) for order in neurons])


def _similarity(name: str, x: Matrix, y: Matrix, **options: Any) -> float:
    return measured(name, x, y, draws=0, **options)[0]


def same(x: Activations, y: Activations) -> bool:
    """Whether two matrices hold the same numbers."""
    return x.values.shape == y.values.shape and bool(torch.equal(x.values, y.values.to(x.values.device)))


def _centred(x: Activations, name: str, fewest: int = 2, constant: bool = False) -> Tensor:
    """Centred columns, without those that do not vary unless `constant`."""
    values = enough(x, name, fewest).values
    varies = varying(values)
    if not bool(varies.any()):
        raise no_variance(name, len(values))
    centred = values if constant or bool(varies.all()) else values[:, varies]
    centred = centred - centred.mean(0)
    if x.is_rounding(centred):
        raise no_variance(name, len(values))
    return centred


def varying(x: Tensor) -> Tensor:
    """Which features of (examples, features) are not constant (features,)."""
    low, high = x.aminmax(dim=0)
    return high - low > 1e-12 * torch.maximum(high.abs(), low.abs())


def no_variance(name: str, n: int) -> Undefined:
    """The error for a matrix whose features are all constant."""
    return Undefined(f"{name} has no variance: every feature is constant over the {n} examples, but for rounding (a dead layer?)")


def _both(x: Activations, y: Activations, fewest: int = 2, constant: bool = False) -> tuple[Tensor, Tensor]:
    left, right = _centred(x, "x", fewest, constant), _centred(y, "y", fewest, constant)
    matched(left, right)
    return left, right.to(left.device)


def matched(x: Tensor, y: Tensor) -> None:
    """Raises ValueError where the two do not have as many examples."""
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} examples and y has {len(y)}; row i of both must be the same example")


def _cca_forms(x: Activations, y: Activations, energy: float = 1.0, weighted: bool = False) -> tuple[_Directions, _Directions]:
    left, right = _both(x, y)
    before, after = _directions(left, x, "x", energy, weighted), _directions(right, y, "y", energy, weighted)
    warn_of_certain(len(left), before.basis.shape[1], after.basis.shape[1])
    return before, after


def caution(message: str, stacklevel: int = 2) -> None:
    """Warn of a value that has to be read with care, or keep the message for who collects `cautions` in this thread."""
    kept = _collected.get()
    if kept is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    elif message not in kept:
        kept.append(message)


@contextmanager
def cautions() -> Iterator[list[str]]:
    """A list that gets what the measures of this thread warn of.

    `warnings.catch_warnings` belongs to the whole process: it would take what other threads warn of at the time, too.
    """
    kept: list[str] = []
    token = _collected.set(kept)
    try:
        yield kept
    finally:
        _collected.reset(token)


def warn_of_certain(n: int, left: int, right: int) -> None:
    """Warn where `n` examples leave half of the correlations of `left` and `right` directions no freedom: they are 1 whatever the data."""
    certain = left + right - (n - 1)
    if certain >= min(left, right) / 2:
        caution(
            f"n={n} examples for {left} and {right} directions: {min(certain, left, right)} of {min(left, right)} canonical correlations "
            "are 1 whatever the data; pool more examples, or use linear_cka",
            stacklevel=3,
        )


def kept_directions(squares: Tensor, found: int, n: int, features: int, name: str, energy: float, ties: float) -> int:
    """How many of the first `found` directions hold `energy` of the sum of `squares` (directions,), with those that tie with the last.

    Raises Undefined where none is found, or they fill the space that `n` centred examples span.
    """
    if not found:
        raise no_variance(name, n)
    kept = found
    if energy < 1:
        share = squares.cumsum(0) / squares.sum()
        last = min(found, int((share < energy).sum()) + 1)
        kept = int((squares[:found] >= (1 - ties) ** 2 * squares[last - 1]).sum())
    if features >= n and kept >= n - 1:  # centred rows sum to zero: n - 1 directions are every direction there is
        raise Undefined(
            f"{name} has n={n} examples and d={features} features that vary: its directions fill the space of examples, and "
            "every canonical correlation is 1 whatever the data. Pool examples over tasks, keep fewer positions as features, or use svcca "
            "with less energy or linear_cka"
        )
    return kept


def _directions(centred: Tensor, x: Activations, name: str, energy: float, weighted: bool) -> _Directions:
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    n, features = centred.shape
    least, ties = max(x.rounding.share * float(s[0]), x.noise), x.rounding.ties
    kept = kept_directions(s.square(), int((s > least).sum()), n, features, name, energy, ties)
    return _Directions(u[:, :kept], s[:kept, None] * v[:kept], weighted, ties)


def _linear_forms(x: Activations, y: Activations, debiased: bool = True) -> tuple[Form, Form]:
    left, right = _both(x, y, fewest=4 if debiased else 2)
    if len(left) <= max(left.shape[1], right.shape[1]):
        return _gram(left @ left.T, "x", debiased), _gram(right @ right.T, "y", debiased)
    return _columns(left, "x", debiased), _columns(right, "y", debiased)


def _rbf_forms(x: Activations, y: Activations, fraction: float = 0.5, debiased: bool = False) -> tuple[_Gram, _Gram]:
    left, right = _both(x, y, fewest=4 if debiased else 2)
    return tuple(_gram(rbf_kernel(side, name, fraction), name, debiased) for side, name in ((left, "x"), (right, "y")))  # type: ignore[return-value]


def rbf_kernel(centred: Tensor, name: str, fraction: float) -> Tensor:
    """`exp(-D² / (2 fraction² median(D²)))` of (examples, features) -> (examples, examples)."""
    gram = centred @ centred.T
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp(min=0)
    distances.fill_diagonal_(0)
    median = float(np.median(distances.cpu().numpy()))
    if median <= 1e-12 * float(distances.max()):
        raise Undefined(f"{name}: more than half of its pairs of examples coincide, so the median distance is 0; use linear_cka")
    return torch.exp(-distances / (2 * fraction**2 * median))


def centred_kernel(kernel: Tensor, debiased: bool) -> Tensor:
    """A kernel (examples, examples) centred so that the inner product of two is HSIC, times (n - 1)² or, debiased, n (n - 3)."""
    n = len(kernel)
    if not debiased:
        means = kernel.mean(0)
        return kernel - means[:, None] - means + means.mean()
    kernel = kernel.clone()  # Szekely and Rizzo 2014: the inner product of kernels centred this way is the U-statistic
    kernel.fill_diagonal_(0)
    means = kernel.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    return (kernel - means[:, None] - means).fill_diagonal_(0)


def equally_far(name: str, n: int) -> Undefined:
    """The error for a matrix whose centred kernel is nought."""
    return Undefined(f"{name}: all pairs of its {n} examples are equally far apart, so nothing is left to align; use more varied examples")


def _gram(kernel: Tensor, name: str, debiased: bool) -> _Gram:
    centred = centred_kernel(kernel, debiased)
    norm = float(centred.norm())
    if norm <= 1e-12 * float(kernel.norm()):
        raise equally_far(name, len(kernel))
    return _Gram(centred / norm)


def _columns(centred: Tensor, name: str, debiased: bool) -> _Columns:
    plain = _Columns(centred / centred.norm(), debiased)
    alignment = plain.alignment(plain)
    if alignment <= 1e-14:
        raise equally_far(name, len(centred))
    return replace(plain, columns=plain.columns / alignment**0.25)


def _procrustes_forms(x: Activations, y: Activations) -> tuple[_Shape, _Shape]:
    # More features than examples: a rotation takes the columns to as many as there are examples, and the measure ignores it.
    left, right = (torch.linalg.qr(side.T, mode="r")[1].T if side.shape[1] > len(side) else side for side in _both(x, y))
    return _Shape(left / left.norm()), _Shape(right / right.norm())


def _subspace_forms(x: Activations, y: Activations, k: int) -> tuple[Principal, Principal]:
    left, right = _both(x, y, constant=True)
    same_width(left.shape[1], right.shape[1])
    return _principal(left, x, k, "x"), _principal(right, y, k, "y")


def _principal(centred: Tensor, x: Activations, k: int, name: str) -> Principal:
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    found = int((s > max(x.rounding.share * float(s[0]), x.noise)).sum())
    return Principal.of(v.T[:, :found], s[:found], leading(k, found, name), x.rounding.ties)


def same_width(left: int, right: int) -> None:
    """Raises ValueError where the widths differ: `subspace` compares directions in one neuron space."""
    if left != right:
        raise ValueError(
            f"x has {left} features and y has {right}: subspace compares directions in one neuron space, so feature i must be the same "
            "neuron in both; use linear_cka, procrustes or cca for other widths"
        )


def leading(k: int, found: int, name: str) -> int:
    """`k`, where there are so many among the `found` directions of `name` that vary."""
    if k > found:
        raise Undefined(f"{name} varies in {found} directions, fewer than k={k}; ask for at most k={found}")
    return k


MEASURES: dict[str, Callable[..., tuple[Form, Form]]] = {
    "cca": lambda x, y: _cca_forms(x, y),
    "svcca": lambda x, y, energy=0.99: _cca_forms(x, y, energy),
    "pwcca": lambda x, y: _cca_forms(x, y, weighted=True),
    "linear_cka": _linear_forms,
    "rbf_cka": _rbf_forms,
    "procrustes": _procrustes_forms,
    "subspace": _subspace_forms,
}
