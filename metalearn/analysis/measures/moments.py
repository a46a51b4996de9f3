"""Sums of products over batches, and the measures that are functions of them.

The sums of two sets of examples add up to those of both, so they need no more memory for more
examples: features² numbers a pair of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .cca import directions_kept, mean_correlation, warn_if_certain, weighted_correlation
from .cka import equally_far, fewest_examples
from .inputs import CONSTANT, SINGLE, Activations, Rounding, caution, no_variance
from .subspace import Principal, check_leading

# Moments hold squares to about 1e-16 of the largest, so a smaller share of it than this cannot be
# told from rounding.
ROUNDING = SINGLE**2

# Condition number above which the smallest directions of moments are rounding.
WORST_CONDITION = 1e5


@dataclass(frozen=True)
class Products:
    """Means of two matrices, and sums of products about the means.

    The products of two sets of examples add up (`+`) to those of both. With x_i and y_i the centred
    rows, debiased linear CKA needs the last three sums beyond the cross product.

    Attributes:
        n: the number of examples.
        x: the mean of x (features of x,).
        y: the mean of y (features of y,).
        xy: `sum_i x_i y_i^T` (features of x, features of y).
        xx: `sum_i |x_i|²` ().
        yy: `sum_i |y_i|²` ().
        xxy: `sum_i |x_i|² y_i` (features of y,).
        xyy: `sum_i x_i |y_i|²` (features of x,).
        xxyy: `sum_i |x_i|² |y_i|²` ().
    """

    n: int
    x: Tensor
    y: Tensor
    xy: Tensor
    xx: Tensor
    yy: Tensor
    xxy: Tensor
    xyy: Tensor
    xxyy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Products:
        """The products of x and y (examples, features), float64."""
        mean_x = x.mean(0)
        mean_y = y.mean(0)
        x = x - mean_x
        y = y - mean_y
        rows_x = x.square().sum(1)  # |x_i|² (examples,)
        rows_y = y.square().sum(1)  # |y_i|² (examples,)
        return cls(
            n=len(x),
            x=mean_x,
            y=mean_y,
            xy=x.T @ y,
            xx=rows_x.sum(),
            yy=rows_y.sum(),
            xxy=rows_x @ y,
            xyy=rows_y @ x,
            xxyy=rows_x @ rows_y,
        )

    def __add__(self, other: Products) -> Products:
        n = self.n + other.n
        device = self.x.device
        # mean = (n_1 mean_1 + n_2 mean_2) / n
        mean_x = self.n / n * self.x + other.n / n * other.x.to(device)
        mean_y = self.n / n * self.y + other.n / n * other.y.to(device)
        pairs = zip(self._about(mean_x, mean_y), other._about(mean_x, mean_y), strict=True)
        return Products(n, mean_x, mean_y, *(first + second for first, second in pairs))

    def _about(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The sums `xy` to `xxyy` about the points x and y instead of the means.

        With a and b the means minus these points, the rows are x_i + a and y_i + b. Terms of first
        order vanish, because sum_i x_i = 0 and sum_i y_i = 0.
        """
        sums = self.xy, self.xx, self.yy, self.xxy, self.xyy, self.xxyy
        xy, xx, yy, xxy, xyy, xxyy = (each.to(x.device) for each in sums)
        n = self.n
        a = self.x.to(x.device) - x
        b = self.y.to(y.device) - y
        aa = a @ a
        bb = b @ b
        return (
            # sum_i (x_i + a) (y_i + b)^T = xy + n a b^T
            torch.addr(xy, a, b, alpha=n),
            # sum_i |x_i + a|² = xx + n |a|²
            xx + n * aa,
            yy + n * bb,
            # sum_i |x_i + a|² (y_i + b) = xxy + 2 xy^T a + (xx + n |a|²) b
            xxy + 2 * (a @ xy) + (xx + n * aa) * b,
            xyy + 2 * (xy @ b) + (yy + n * bb) * a,
            # sum_i |x_i + a|² |y_i + b|² = xxyy + 2 b^T xxy + 2 a^T xyy + xx |b|² + yy |a|²
            #                               + 4 a^T xy b + n |a|² |b|²
            xxyy + 2 * (xxy @ b + xyy @ a) + xx * bb + yy * aa + 4 * (a @ xy @ b) + n * aa * bb,
        )

    def hsic(self, *, debiased: bool) -> float:
        """The HSIC of the linear kernels: `||X^T Y||_F²`, or the U-statistic times n (n - 3)."""
        cross = self.xy.square().sum()
        if not debiased:
            return float(cross)
        # Without the diagonals of the kernels, |x_i|² and |y_i|²:
        # ||X^T Y||² - n / (n - 2) sum_i |x_i|² |y_i|²
        #            + (sum_i |x_i|²) (sum_i |y_i|²) / ((n - 1) (n - 2))
        n = self.n
        return float(cross - n / (n - 2) * self.xxyy + self.xx * self.yy / ((n - 1) * (n - 2)))


@dataclass(frozen=True)
class Coarseness:
    """The rounding of one side over all batches.

    Attributes:
        rounding: the finest of any batch.
        longest_row: the largest norm of a row.
    """

    rounding: Rounding
    longest_row: float

    @classmethod
    def of(cls, side: Activations) -> Coarseness:
        """The rounding of one batch."""
        return cls(side.rounding, float(torch.linalg.vector_norm(side.values, dim=1).max()))

    def __add__(self, other: Coarseness) -> Coarseness:
        return Coarseness(
            min(self.rounding, other.rounding), max(self.longest_row, other.longest_row)
        )


@dataclass(frozen=True)
class Side:
    """The products of one side with itself, and the rounding of its values."""

    products: Products
    coarseness: Coarseness

    @classmethod
    def of(cls, side: Activations) -> Side:
        """One side of one batch."""
        return cls(Products.of(side.values, side.values), Coarseness.of(side))

    def __add__(self, other: Side) -> Side:
        return Side(self.products + other.products, self.coarseness + other.coarseness)

    @property
    def squares(self) -> Tensor:
        """The squared norms of the features about zero (features,)."""
        # sum_i (x_i + mean)² = sum_i x_i² + n mean²
        return self.products.xy.diagonal() + self.products.n * self.products.x.square()

    def least(self, largest: float) -> float:
        """The squared singular value below which a direction is rounding.

        This is the rounding of the values, or of the moments if that is larger.

        Args:
            largest: the largest squared singular value.
        """
        longest_column = float(self.squares.max().sqrt())
        shape = self.products.n, len(self.products.x)
        coarseness = self.coarseness
        noise = coarseness.rounding.noise(coarseness.longest_row, longest_column, shape)
        return max(ROUNDING * largest, noise**2)

    def count_varying(self, name: str) -> int:
        """How many features are not constant, by their variance beside their mean.

        Raises:
            Undefined: no feature varies by more than its rounding.
        """
        products = self.products
        rounding = self.coarseness.rounding
        constant = products.n * (CONSTANT * products.x).square()  # (features,)
        varying = int((products.xy.diagonal() > constant).sum())
        entries = products.n * len(products.x)
        lost = rounding.relative * self.squares.sum().sqrt() + rounding.absolute * entries**0.5
        if not varying or float(products.xx) <= float(lost) ** 2:
            raise no_variance(name, products.n)
        return varying


@dataclass(frozen=True)
class Moments:
    """The products of each side with itself, of both, and of both with one side shuffled."""

    left: Side
    right: Side
    cross: Products
    shuffled: tuple[Products, ...]

    @classmethod
    def of(cls, left: Activations, right: Activations, orders: Tensor) -> Moments:
        """The products of one batch, and with the right side in each of `orders` (draws, rows)."""
        x = left.values
        y = right.values
        shuffled = tuple(Products.of(x, y[order]) for order in orders)
        return cls(Side.of(left), Side.of(right), Products.of(x, y), shuffled)

    @property
    def sides(self) -> tuple[tuple[Side, str], ...]:
        """Both sides with their names in errors."""
        return (self.left, "x"), (self.right, "y")

    def __add__(self, other: Moments) -> Moments:
        draws = zip(self.shuffled, other.shuffled, strict=True)
        shuffled = tuple(first + second for first, second in draws)
        return Moments(
            self.left + other.left, self.right + other.right, self.cross + other.cross, shuffled
        )


# From the sums of all batches to a function of the cross products, true or shuffled.
Measure: TypeAlias = Callable[..., Callable[[Products], float]]


def _cca(moments: Moments) -> Callable[[Products], float]:
    return _correlations(moments)


def _svcca(moments: Moments, energy: float = 0.99) -> Callable[[Products], float]:
    return _correlations(moments, energy)


def _pwcca(moments: Moments) -> Callable[[Products], float]:
    return _correlations(moments, weighted=True)


def _correlations(
    moments: Moments, energy: float = 1.0, *, weighted: bool = False
) -> Callable[[Products], float]:
    before = _directions(moments.left, "x", energy)
    after = _directions(moments.right, "y", energy)
    warn_if_certain(moments.cross.n, before.whitening.shape[1], after.whitening.shape[1])
    ties = max(side.coarseness.rounding.ties for side, _ in moments.sides)

    def value(products: Products) -> float:
        # Q_x^T Q_y = W_x^T (X^T Y) W_y, with Q = X W
        cross = before.whitening.T @ products.xy @ after.whitening
        if weighted:
            return weighted_correlation(cross, before.coordinates, ties)
        return mean_correlation(cross)

    return value


@dataclass(frozen=True)
class _Directions:
    """The directions of one side that are kept.

    Attributes:
        whitening: W (features, directions), from centred columns X to an orthonormal basis
            Q = X W.
        coordinates: Q^T X (directions, features).
    """

    whitening: Tensor
    coordinates: Tensor


def _directions(side: Side, name: str, energy: float) -> _Directions:
    rounding = side.coarseness.rounding
    features = side.count_varying(name)
    squares, axes = _principal(side)
    rank = int((squares > side.least(float(squares[0]))).sum())
    kept = directions_kept(
        squares[:rank],
        rank,
        energy=energy,
        ties=rounding.ties,
        n=side.products.n,
        features=features,
        name=name,
    )
    condition = float((squares[0] / squares[kept - 1]).sqrt())
    if condition > WORST_CONDITION:
        caution(
            f"{name} has the condition number {condition:.1e}, and moments square it: beyond 1e5"
            " the smallest directions are rounding. Compare in memory, or use svcca, which drops"
            " them",
            stacklevel=2,
        )
    # In single precision, the measure in memory drops the same directions.
    elif rounding.double and rank < features and kept == rank:
        caution(
            f"{features - rank} of {features} directions of {name} are left out: they are below"
            f" {ROUNDING**0.5:.0e} of the largest (a condition number beyond {ROUNDING**-0.5:.0e}),"
            " and moments cannot tell them from linearly dependent features. Compare in memory if"
            " they matter",
            stacklevel=2,
        )
    # X^T X = V S² V^T, so W = V S^-1 and Q^T X = S V^T.
    scales = squares[:kept].sqrt()
    axes = axes[:, :kept]
    return _Directions(axes / scales, scales[:, None] * axes.T)


def _principal(side: Side) -> tuple[Tensor, Tensor]:
    """Squared singular values of the centred side, largest first, and their axes.

    Returns:
        (directions,) and (features, directions).
    """
    squares, axes = torch.linalg.eigh(side.products.xy)
    return squares.flip(-1), axes.flip(-1)


def _linear_cka(moments: Moments, *, debiased: bool = True) -> Callable[[Products], float]:
    fewest = fewest_examples(debiased=debiased)
    within = []
    for side, name in moments.sides:
        products = side.products
        if products.n < fewest:
            raise ValueError(
                f"{name} has {products.n} examples in all; this measure needs at least {fewest}"
            )
        side.count_varying(name)
        hsic = products.hsic(debiased=debiased)
        if hsic <= 1e-14 * float(products.xx) ** 2:
            raise equally_far(name, products.n)
        within.append(hsic)
    # HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    scale = (within[0] * within[1]) ** 0.5
    return lambda cross: min(1.0, cross.hsic(debiased=debiased) / scale)


def _procrustes(moments: Moments) -> Callable[[Products], float]:
    for side, name in moments.sides:
        side.count_varying(name)
    # ||X^T Y||_* / (||X||_F ||Y||_F), with ||X||_F² = sum_i |x_i|²
    scale = float(moments.left.products.xx * moments.right.products.xx) ** 0.5
    return lambda cross: min(1.0, float(torch.linalg.svdvals(cross.xy).sum()) / scale)


def _subspace(moments: Moments, k: int) -> Callable[[Products], float]:
    before, after = principal_axes(moments, k)
    return lambda cross: before.similarity(after)


def principal_axes(moments: Moments, k: int) -> list[Principal]:
    """The first `k` principal directions of both sides."""
    axes_of_sides = []
    for side, name in moments.sides:
        side.count_varying(name)
        squares, axes = _principal(side)
        rank = int((squares > side.least(float(squares[0]))).sum())
        check_leading(k, rank, name)
        ties = side.coarseness.rounding.ties
        axes_of_sides.append(Principal.of(axes[:, :rank], squares[:rank].sqrt(), k, ties))
    return axes_of_sides


MOMENTS: dict[str, Measure] = {
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "linear_cka": _linear_cka,
    "procrustes": _procrustes,
    "subspace": _subspace,
}
