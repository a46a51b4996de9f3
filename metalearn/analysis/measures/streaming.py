"""The measures over a stream of batches, without holding activations: `update` with every batch,
`merge` across processes, `compute`.

Two ways to sum. *Moments*: means and centred sums of products, of which CCA, SVCCA, PWCCA, linear
CKA, Procrustes and the subspace similarity are functions; features² numbers, whatever the examples,
and the in-memory value for any batches in any order. *Minibatch*: the three HSIC terms of each
batch, added up (Nguyen et al. 2021, arXiv:2010.15327); three numbers, whatever the features, and
the only way for a kernel that is not linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import check_count, check_seed, check_units

from .cca import kept_directions, mean_correlation, warn_of_certain, weighted_correlation
from .chance import check_options, rearranged
from .cka import centred_kernel, equally_far, rbf_kernel
from .inputs import (
    SINGLE,
    Activations,
    Matrix,
    Rounding,
    activations,
    caution,
    matched,
    no_variance,
    same,
    varying,
)
from .subspace import Principal, leading, same_width

# Moments hold squares to about 1e-16 of the largest: a smaller share of it than this cannot be told
# from rounding.
ROUNDING = SINGLE**2
WORST_CONDITION = 1e5


class Streaming:
    """A similarity of two networks' activations, accumulated batch by batch: equal to the function
    of that name on all of them at once.

    Row i of both sides of a batch is the same example; a short last batch counts for what it holds.
    Sums are float64 on the device of the first side. An instance can be pickled, so across
    processes each updates its own, and one merges what `all_gather_object` brings.

    CCA and PWCCA divide by the smallest direction, and moments hold its square: they agree with the
    in-memory value to 1e-10 up to a condition number (largest over smallest singular value of a
    centred side) of 1e3, and beyond 1e5 `compute` warns with the number. SVCCA drops the small
    directions; the other measures do not divide. Directions below 3e-7 of the largest, or within
    the rounding of the dtype, are dropped. For float64 inputs `compute` warns about it, because the
    in-memory measure keeps them.

    Args:
        measure: "cca", "svcca", "pwcca", "linear_cka", "rbf_cka", "procrustes" or "subspace".
        minibatch: minibatch CKA instead of moments: `sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b,
            K_b) sum_b HSIC(L_b, L_b))` with the unnormalised U-statistic, which weights a batch of
            n by n (n - 3); fewer than 4 examples say nothing. For "linear_cka" and "rbf_cka", whose
            only way this is. It depends on the batches.
        draws: how many shuffled versions of the second side are accumulated for `chance`; each adds
            a matrix of features².
        seed: what the draws depend on.
        options: the function's own, such as `energy`, `debiased`, `fraction` or `k`.

    Raises:
        ValueError: a measure or option that is not there, or a kernel without `minibatch`.

    Example:
        >>> from metalearn.analysis import cca
        >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> y, stream = x**3, Streaming("cca")
        >>> for first in range(0, 1000, 64):
        ...     stream.update(x[first : first + 64], y[first : first + 64])
        >>> abs(stream.compute() - cca(x, y)) < 1e-12
        True
    """

    def __init__(
        self,
        measure: str,
        *,
        minibatch: bool = False,
        draws: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        _check_options(measure, minibatch, options)
        self.measure, self.minibatch, self.options = measure, minibatch, options
        self.draws, self.seed = check_count(draws), check_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._sums: _Moments | _Terms | None = None
        self._same = True
        self.examples = self.batches = self.shuffled = 0
        self.features = (0, 0)

    def update(self, x: Matrix, y: Matrix, *, units: int | None = None) -> None:
        """Add a batch, x and y (examples, features); `chance` shuffles its `units` equal
        consecutive blocks whole, by default each row.

        Raises ValueError, and adds nothing, for different numbers of examples, other widths than
        before, or values that are not finite.
        """
        left, right = activations(x, "x"), activations(y, "y")
        matched(left.values, right.values)
        right = replace(right, values=right.values.to(left.values.device))
        rows, widths = len(left.values), (left.values.shape[1], right.values.shape[1])
        if self.examples and widths != self.features:
            raise ValueError(
                f"this batch has {widths[0]} and {widths[1]} features, and those before"
                f" {self.features[0]} and {self.features[1]}"
            )
        if self.measure == "subspace":
            same_width(*widths)
        units = rows if units is None else units
        check_units(units, rows)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.batches)
        draws = 0 if self.measure == "subspace" else self.draws
        stays = torch.arange(rows).expand(draws, -1)
        orders = (rearranged(rows, units, generator, draws) if units > 1 else stays).to(
            left.values.device
        )
        self._add(self._batch(left, right, orders), rows, 1, widths, same(left, right), units > 1)

    def merge(self, other: Streaming) -> Streaming:
        """Add what another instance of the same measure and options has seen, such as another
        process's -> this one.
        """
        for what in ("measure", "minibatch", "draws", "options"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise ValueError(
                    f"{what} is {ours!r} here and {theirs!r} there; merge streams of one kind"
                )
        if self.examples and other.examples and self.features != other.features:
            raise ValueError(
                f"features are {self.features} here and {other.features} there; merge streams of"
                " the same two layers"
            )
        if other._sums is not None:
            self._add(
                other._sums,
                other.examples,
                other.batches,
                other.features,
                other._same,
                other.shuffled,
            )
        return self

    def compute(self) -> float:
        """The similarity over every batch so far.

        Raises ValueError as the function of that name does, and where there was no batch. Warns
        where a condition number is too large.
        """
        value = self._value()
        # The same numbers are the same network: exactly 1, without the last bit of a square root.
        return 1.0 if self._same else value(self._seen().cross)

    def chance(self) -> np.ndarray:
        """The similarity with whole units of the second side shuffled within each batch ->
        (draws,), none where no batch has two.

        A batch of one unit has no other place for it and stays as it is, so a few of those raise
        the floor a little. Batches sorted by class give the floor of one class: shuffle the loader.
        For "subspace", neurons are shuffled instead.
        """
        sums = self._seen()
        if self.measure == "subspace":
            generator = torch.Generator().manual_seed(self.seed)
            before, after = _axes(sums, **self.options)
            return before.chance(after, torch.empty(self.draws, 0), generator).cpu().numpy()
        value = self._value()
        return np.array([value(cross) for cross in sums.shuffled if self.shuffled])

    def _batch(self, left: Activations, right: Activations, orders: Tensor) -> _Moments | _Terms:
        if self.minibatch:
            return _Terms.of(self._kernel(left, "x"), self._kernel(right, "y"), orders)
        x, y = left.values, right.values
        shuffled = tuple(Products.of(x, y[order]) for order in orders)
        sides = (
            _Side(Products.of(x, x), _Coarseness.of(left)),
            _Side(Products.of(y, y), _Coarseness.of(right)),
        )
        return _Moments(*sides, Products.of(x, y), shuffled)

    def _kernel(self, side: Activations, name: str) -> Tensor:
        """A batch's kernel, centred; nought where it says nothing: too few examples, or all of them
        equally far apart.
        """
        n, varies = len(side.values), varying(side.values)
        centred = side.values[:, varies] - side.values[:, varies].mean(0)
        if n < 4 or side.is_rounding(
            centred
        ):  # the U-statistic of 3 is nought, and of fewer is not defined
            return side.values.new_zeros(n, n)
        kernel = (
            centred @ centred.T
            if self.measure == "linear_cka"
            else rbf_kernel(centred, name, self.options.get("fraction", 0.5))
        )
        found = centred_kernel(kernel, debiased=True)
        return (
            found if float(found.norm()) > 1e-12 * float(kernel.norm()) else torch.zeros_like(found)
        )

    def _add(
        self,
        sums: _Moments | _Terms,
        examples: int,
        batches: int,
        features: tuple[int, int],
        same: bool,
        shuffled: int,
    ) -> None:
        self._sums = sums if self._sums is None else self._sums + sums  # type: ignore[operator]
        self._same = self._same and same
        self.examples, self.batches, self.shuffled = (
            self.examples + examples,
            self.batches + batches,
            self.shuffled + shuffled,
        )
        self.features = features

    def _seen(self) -> Any:
        if self._sums is None:
            raise ValueError(
                "no batch was seen, so there is nothing to compute; call update(x, y) first"
            )
        return self._sums

    def _value(self) -> Callable[[Any], float]:
        sums = self._seen()
        return (
            _minibatch(sums, self.examples)
            if self.minibatch
            else MOMENTS[self.measure](sums, **self.options)
        )


@dataclass(frozen=True)
class Products:
    """Two matrices' means and sums of products about them, over `n` examples; those of two sets of
    examples add up to those of both.

    With x and y centred: `xy` (features of x, features of y) sums `x y^T`; `xx` and `yy` the
    squared norms `|x|²` and `|y|²`; `xxy` (features of y,) sums `|x|² y`; `xyy` (features of x,)
    sums `x |y|²`; `xxyy` sums `|x|² |y|²`. The last three are what debiased linear CKA needs beyond
    the cross product.
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
        means = x.mean(0), y.mean(0)
        x, y = x - means[0], y - means[1]
        rows_x, rows_y = x.square().sum(1), y.square().sum(1)
        return cls(
            len(x),
            *means,
            x.T @ y,
            rows_x.sum(),
            rows_y.sum(),
            rows_x @ y,
            rows_y @ x,
            rows_x @ rows_y,
        )

    def __add__(self, other: Products) -> Products:
        n, device = self.n + other.n, self.x.device
        x, y = (
            self.n / n * ours + other.n / n * theirs.to(device)
            for ours, theirs in ((self.x, other.x), (self.y, other.y))
        )
        pairs = zip(self._about(x, y), other._about(x, y), strict=True)
        return Products(n, x, y, *(ours + theirs for ours, theirs in pairs))

    def _about(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The sums about other points than the means.

        As first powers sum to nought, only second ones remain (Chan et al. 1983).
        """
        xy, xx, yy, xxy, xyy, xxyy = (
            each.to(x.device) for each in (self.xy, self.xx, self.yy, self.xxy, self.xyy, self.xxyy)
        )
        a, b = self.x.to(x.device) - x, self.y.to(y.device) - y
        aa, bb = a @ a, b @ b
        return (
            torch.addr(xy, a, b, alpha=self.n),
            xx + self.n * aa,
            yy + self.n * bb,
            xxy + 2 * (a @ xy) + (xx + self.n * aa) * b,
            xyy + 2 * (xy @ b) + (yy + self.n * bb) * a,
            xxyy
            + 2 * (xxy @ b + xyy @ a)
            + xx * bb
            + yy * aa
            + 4 * (a @ xy @ b)
            + self.n * aa * bb,
        )

    def hsic(self, debiased: bool) -> float:
        """`||X^T Y||²`, or the U-statistic times n (n - 3), which takes the diagonal of the kernels
        out.
        """
        cross = self.xy.square().sum()
        if not debiased:
            return float(cross)
        return float(
            cross
            - self.n / (self.n - 2) * self.xxyy
            + self.xx * self.yy / ((self.n - 1) * (self.n - 2))
        )


@dataclass(frozen=True)
class _Coarseness:
    """What is kept of the rounding of one side: the finest of any batch, and the norm of the
    longest row.
    """

    rounding: Rounding
    longest: float

    @classmethod
    def of(cls, side: Activations) -> _Coarseness:
        return cls(side.rounding, float(torch.linalg.vector_norm(side.values, dim=1).max()))

    def __add__(self, other: _Coarseness) -> _Coarseness:
        return _Coarseness(min(self.rounding, other.rounding), max(self.longest, other.longest))


@dataclass(frozen=True)
class _Side:
    """The products of one side with itself, and how coarse its values are."""

    products: Products
    coarseness: _Coarseness

    def __add__(self, other: _Side) -> _Side:
        return _Side(self.products + other.products, self.coarseness + other.coarseness)

    @property
    def squares(self) -> Tensor:
        """The squared norms of the features about zero (features,)."""
        return self.products.xy.diagonal() + self.products.n * self.products.x.square()

    def least(self, largest: float) -> float:
        """The square of a singular value below which a direction is rounding, of the values or of
        the moments.
        """
        rounding, n = self.coarseness.rounding, self.products.n
        noise = rounding.noise(
            self.coarseness.longest, float(self.squares.max().sqrt()), (n, len(self.products.x))
        )
        return max(ROUNDING * largest, noise**2)

    def check(self, name: str) -> int:
        """How many features are not constant, by their variance beside their mean.

        Raises Undefined where none varies.
        """
        own, rounding = self.products, self.coarseness.rounding
        varies = int((own.xy.diagonal() > own.n * (1e-12 * own.x).square()).sum())
        lost = (
            rounding.relative * self.squares.sum().sqrt()
            + rounding.absolute * (own.n * len(own.x)) ** 0.5
        )
        if not varies or float(own.xx) <= float(lost) ** 2:
            raise no_variance(name, own.n)
        return varies


@dataclass(frozen=True)
class _Moments:
    """Each side with itself, the products of both, and of both with one side shuffled."""

    left: _Side
    right: _Side
    cross: Products
    shuffled: tuple[Products, ...]

    @property
    def sides(self) -> tuple[tuple[_Side, str], ...]:
        return (self.left, "x"), (self.right, "y")

    def __add__(self, other: _Moments) -> _Moments:
        shuffled = tuple(
            ours + theirs for ours, theirs in zip(self.shuffled, other.shuffled, strict=True)
        )
        return _Moments(
            self.left + other.left, self.right + other.right, self.cross + other.cross, shuffled
        )


@dataclass(frozen=True)
class _Terms:
    """The HSIC of each side with itself, of both, and of both with one side shuffled (draws,),
    summed over batches.
    """

    left: Tensor
    right: Tensor
    cross: Tensor
    shuffled: Tensor

    @classmethod
    def of(cls, k: Tensor, m: Tensor, orders: Tensor) -> _Terms:
        """The terms of one batch from its centred kernels."""
        shuffled = [(k * m[order][:, order]).sum() for order in orders]
        return cls(
            (k * k).sum(),
            (m * m).sum(),
            (k * m).sum(),
            torch.stack(shuffled) if shuffled else k.new_zeros(0),
        )

    def __add__(self, other: _Terms) -> _Terms:
        device = self.cross.device
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Terms(*(ours + theirs.to(device) for ours, theirs in pairs))


def _minibatch(sums: _Terms, n: int) -> Callable[[Tensor], float]:
    for side, name in ((sums.left, "x"), (sums.right, "y")):
        if float(side) <= 0:
            error = equally_far(name, n)
            raise type(error)(
                f"{error}; or every batch has fewer than the 4 examples that minibatch CKA needs"
            )
    scale = (sums.left * sums.right).sqrt()
    return lambda cross: min(1.0, float(cross / scale))


Measure: TypeAlias = Callable[..., Callable[[Products], float]]


def _cca(
    sums: _Moments, energy: float = 1.0, weighted: bool = False
) -> Callable[[Products], float]:
    before, after = (_directions(side, name, energy) for side, name in sums.sides)
    warn_of_certain(sums.cross.n, before.whitening.shape[1], after.whitening.shape[1])
    ties = max(side.coarseness.rounding.ties for side, _ in sums.sides)

    def value(products: Products) -> float:
        cross = before.whitening.T @ products.xy @ after.whitening
        return (
            weighted_correlation(cross, before.coordinates, ties)
            if weighted
            else mean_correlation(cross)
        )

    return value


@dataclass(frozen=True)
class _Directions:
    """What takes centred columns to an orthonormal basis, `whitening` (features, directions), and
    the columns in it, `coordinates`.
    """

    whitening: Tensor
    coordinates: Tensor


def _directions(side: _Side, name: str, energy: float) -> _Directions:
    features, rounding = side.check(name), side.coarseness.rounding
    squares, axes = _principal(side)
    found = int((squares > side.least(float(squares[0]))).sum())
    kept = kept_directions(
        squares[:found], found, side.products.n, features, name, energy, rounding.ties
    )
    condition = float((squares[0] / squares[kept - 1]).sqrt())
    if condition > WORST_CONDITION:
        caution(
            f"{name} has the condition number {condition:.1e}, and moments square it: beyond 1e5"
            " the smallest directions are rounding. Compare in memory, or use svcca, which leaves"
            " them out",
            stacklevel=2,
        )
    elif (
        rounding.double and found < features and kept == found
    ):  # of single precision, in memory leaves out the same
        caution(
            f"{features - found} of {features} directions of {name} are left out: they are below"
            f" {ROUNDING**0.5:.0e} of the largest (a condition number beyond {ROUNDING**-0.5:.0e}),"
            " which moments cannot tell from features that depend on each other. Compare in memory"
            " if they matter",
            stacklevel=2,
        )
    scales, axes = squares[:kept].sqrt(), axes[:, :kept]
    return _Directions(axes / scales, scales[:, None] * axes.T)


def _principal(side: _Side) -> tuple[Tensor, Tensor]:
    """The squared singular values (directions,) of the centred side, largest first, and their axes
    (features, directions).
    """
    squares, axes = torch.linalg.eigh(side.products.xy)
    return squares.flip(-1), axes.flip(-1)


def _linear_cka(sums: _Moments, debiased: bool = True) -> Callable[[Products], float]:
    within = []
    for side, name in sums.sides:
        own = side.products
        if own.n < (4 if debiased else 2):
            raise ValueError(
                f"{name} has {own.n} examples in all; this measure needs at least"
                f" {4 if debiased else 2}"
            )
        side.check(name)
        within.append(own.hsic(debiased))
        if within[-1] <= 1e-14 * float(own.xx) ** 2:
            raise equally_far(name, own.n)
    scale = (within[0] * within[1]) ** 0.5
    return lambda cross: min(1.0, cross.hsic(debiased) / scale)


def _procrustes(sums: _Moments) -> Callable[[Products], float]:
    for side, name in sums.sides:
        side.check(name)
    scale = float(sums.left.products.xx * sums.right.products.xx) ** 0.5
    return lambda cross: min(1.0, float(torch.linalg.svdvals(cross.xy).sum()) / scale)


def _subspace(sums: _Moments, k: int) -> Callable[[Products], float]:
    before, after = _axes(sums, k)
    return lambda cross: before.similarity(after)


def _axes(sums: _Moments, k: int) -> list[Principal]:
    sides = []
    for side, name in sums.sides:
        side.check(name)
        squares, axes = _principal(side)
        found = int((squares > side.least(float(squares[0]))).sum())
        k = leading(k, found, name)
        sides.append(
            Principal.of(axes[:, :found], squares[:found].sqrt(), k, side.coarseness.rounding.ties)
        )
    return sides


MOMENTS: dict[str, Measure] = {
    "cca": lambda sums: _cca(sums),
    "svcca": lambda sums, energy=0.99: _cca(sums, energy),
    "pwcca": lambda sums: _cca(sums, weighted=True),
    "linear_cka": _linear_cka,
    "procrustes": _procrustes,
    "subspace": _subspace,
}


def _check_options(measure: str, minibatch: bool, options: dict[str, Any]) -> None:
    check_options(measure, options)
    if minibatch and measure not in ("linear_cka", "rbf_cka"):
        raise ValueError(
            f"minibatch={minibatch}: there is no minibatch {measure}, only linear_cka and rbf_cka;"
            " it streams from moments"
        )
    if not minibatch and measure not in MOMENTS:
        raise ValueError(
            f"{measure} has no moments of fixed size: its kernel needs all examples at once; ask"
            " for minibatch=True"
        )
    if minibatch and options.get("debiased", True) is not True:
        raise ValueError(
            "debiased=False: minibatch CKA adds up the unbiased terms, since a biased one depends"
            " on the size of the batches"
        )
