"""Centred kernel alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import is_number
from metalearn.analysis.measures.inputs import Activations, Matrix, Undefined, both_centred
from metalearn.analysis.measures.prepared import GATHERED, Form, compared, joined, shuffled


def linear_cka(
    x: Matrix,
    y: Matrix,
    debiased: bool = True,  # noqa: FBT001, FBT002 (public)
) -> float:
    """Linear centred kernel alignment.

    `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` with `K = X X^T` and `L = Y Y^T`; without debiasing
    this is `||Y^T X||_F² / (||X^T X||_F ||Y^T Y||_F)` of the centred matrices (Kornblith et al.
    2019, arXiv:1905.00414). Invariant to rotations, reflections, isotropic scaling and translations
    of either side. The widths may differ.

    Args:
        x: (examples, features), at least 4 examples if debiased.
        y: (examples, other features).
        debiased: use the U-statistic of Song et al. (2007) for each of the three terms. It scores
            about 0 for unrelated matrices of any width (it may be negative). The biased value of
            75 examples in thousands of features is near 1.

    Raises:
        ValueError: different numbers of examples, too few, a value that is not finite, or no
            variance.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(75, 4000, generator=rng), torch.randn(75, 4000, generator=rng)
        >>> round(linear_cka(x, y, debiased=False), 2), round(linear_cka(x, y), 2)
        (0.98, 0.01)
    """
    return compared(partial(linear_forms, debiased=debiased), x, y)


def rbf_cka(
    x: Matrix,
    y: Matrix,
    fraction: float = 0.5,
    debiased: bool = False,  # noqa: FBT001, FBT002 (public)
) -> float:
    """Centred kernel alignment with a radial basis function kernel.

    As `linear_cka`, with `K_ij = exp(-D²_ij / (2 fraction² median(D²)))`, D the distances between
    examples and the median taken over all of D², its zero diagonal included (Kornblith et al. 2019,
    arXiv:1905.00414). Invariant to rotations, reflections, isotropic scaling and translations of
    either side. Memory: matrices of examples x examples.

    Args:
        x: (examples, features), at least 4 examples if debiased.
        y: (examples, other features).
        fraction: the width of the kernel, as a share of the square root of the median.
        debiased: use the U-statistic for each of the three terms.

    Raises:
        ValueError: as `linear_cka` does; also if more than half of the pairs of examples coincide.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(rbf_cka(x, 3 * x + 1), 6)
        1.0
    """
    check_fraction(fraction)
    return compared(partial(rbf_forms, fraction=fraction, debiased=debiased), x, y)


@dataclass(frozen=True)
class _Gram:
    """A centred kernel matrix (examples, examples) of norm 1."""

    kernel: Tensor

    def similarity(self, other: _Gram) -> float:
        # <K, L> = sum_ij K_ij L_ij
        return min(1.0, float((self.kernel * other.kernel).sum()))

    def chance(self, other: _Gram, orders: Tensor, generator: torch.Generator) -> Tensor:
        n = len(self.kernel)
        i, j = torch.tril_indices(n, n, device=self.kernel.device)
        # Kernels are symmetric, so an entry below the diagonal stands for two.
        multiplicity = torch.where(i == j, 1.0, 2.0).to(self.kernel)
        weights = multiplicity * self.kernel[i, j]  # (pairs,)
        # With examples in the order p, the entry (i, j) of the other kernel is its (p_i, p_j),
        # number p_i n + p_j of the flat matrix.
        entries = other.kernel.flatten()
        parts = orders.split(max(1, GATHERED // len(i)))
        values = (entries[order[:, i] * n + order[:, j]] @ weights for order in parts)
        return joined(values, self.kernel)


@dataclass(frozen=True)
class _Columns:
    """Centred columns (examples, features), scaled such that the HSIC with itself is 1.

    This form of linear CKA is cheaper than `_Gram` for more examples than features.
    """

    columns: Tensor
    debiased: bool

    def hsic(self, other: _Columns) -> float:
        """`||X^T Y||_F²`, or the U-statistic times n (n - 3)."""
        n = len(self.columns)
        cross = float((self.columns.T @ other.columns).square().sum())
        if not self.debiased:
            return cross
        # Without the diagonals k_i = |x_i|² and l_i = |y_i|² of the two kernels:
        # n (n - 3) HSIC_1 = ||X^T Y||² - n / (n - 2) sum_i k_i l_i
        #                    + (sum_i k_i) (sum_i l_i) / ((n - 1) (n - 2))
        rows_x = self.columns.square().sum(1)  # (examples,)
        rows_y = other.columns.square().sum(1)  # (examples,)
        return (
            cross
            - n / (n - 2) * float(rows_x @ rows_y)
            + float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))
        )

    def similarity(self, other: _Columns) -> float:
        return min(1.0, self.hsic(other))

    def chance(self, other: _Columns, orders: Tensor, generator: torch.Generator) -> Tensor:
        crosses = joined(
            (
                (self.columns.T @ columns).square().sum((1, 2))
                for columns in shuffled(other.columns, orders)
            ),
            self.columns,
        )  # (draws,)
        if not self.debiased:
            return crosses
        return self._debiased(other, crosses, orders)

    def _debiased(self, other: _Columns, crosses: Tensor, orders: Tensor) -> Tensor:
        """`hsic` for every order: of its terms, a shuffle changes the first two."""
        n = len(self.columns)
        rows_x = self.columns.square().sum(1)  # (examples,)
        rows_y = other.columns.square().sum(1)  # (examples,)
        return (
            crosses
            - n / (n - 2) * (rows_y[orders] @ rows_x)
            + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
        )


def check_fraction(fraction: object) -> None:
    """Raise ValueError if `fraction` is not the width of a kernel."""
    if not is_number(fraction) or not 0 < fraction < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"fraction={fraction} must be above 0 and finite: it is the kernel's width as a"
            " fraction of the median distance"
        )


def linear_forms(x: Activations, y: Activations, *, debiased: bool = True) -> tuple[Form, Form]:
    """Both matrices for linear CKA: as columns, or as Gram matrices if those are smaller."""
    left, right = both_centred(x, y, fewest=fewest_examples(debiased=debiased))
    if len(left) > max(left.shape[1], right.shape[1]):
        return _columns(left, "x", debiased=debiased), _columns(right, "y", debiased=debiased)
    before = _gram(left @ left.T, "x", debiased=debiased)  # (examples, examples)
    after = _gram(right @ right.T, "y", debiased=debiased)
    return before, after


def rbf_forms(
    x: Activations, y: Activations, fraction: float = 0.5, *, debiased: bool = False
) -> tuple[_Gram, _Gram]:
    """The centred kernels of both matrices."""
    left, right = both_centred(x, y, fewest=fewest_examples(debiased=debiased))
    before = _gram(rbf_kernel(left, "x", fraction), "x", debiased=debiased)
    after = _gram(rbf_kernel(right, "y", fraction), "y", debiased=debiased)
    return before, after


def fewest_examples(*, debiased: bool) -> int:
    """The fewest examples with a value: the U-statistic divides by n - 3."""
    return 4 if debiased else 2


def rbf_kernel(centred: Tensor, name: str, fraction: float) -> Tensor:
    """`exp(-D² / (2 fraction² median(D²)))`.

    Args:
        centred: (examples, features).
        name: what to call it in errors.
        fraction: the width of the kernel.

    Returns:
        The kernel (examples, examples).

    Raises:
        Undefined: the median distance is 0.
    """
    # D²_ij = |x_i|² + |x_j|² - 2 x_i . x_j
    gram = centred @ centred.T
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp(min=0)
    distances.fill_diagonal_(0)
    median = float(np.median(distances.cpu().numpy()))
    if median <= 1e-12 * float(distances.max()):
        raise Undefined(
            f"{name}: more than half of its pairs of examples coincide, so the median distance is"
            " 0; use linear_cka"
        )
    return torch.exp(-distances / (2 * fraction**2 * median))


def centred_kernel(kernel: Tensor, *, debiased: bool) -> Tensor:
    """A kernel centred such that the inner product of two is proportional to their HSIC.

    Args:
        kernel: (examples, examples), symmetric.
        debiased: the factor is n (n - 3), for the U-statistic; otherwise it is (n - 1)².

    Returns:
        The centred kernel (examples, examples).
    """
    n = len(kernel)
    if not debiased:
        # H K H with H = I - 1 1^T / n: K_ij - mean_i - mean_j + mean
        means = kernel.mean(0)
        return kernel - means[:, None] - means + means.mean()
    # Szekely and Rizzo 2014: without the diagonal, with row sums k_i and their sum k,
    # K_ij - k_i / (n - 2) - k_j / (n - 2) + k / ((n - 1) (n - 2)) for i != j, and 0 for i = j.
    kernel = kernel.clone()
    kernel.fill_diagonal_(0)
    means = kernel.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))  # half of the last term for i, half for j
    return (kernel - means[:, None] - means).fill_diagonal_(0)


def equally_far(name: str, n: int) -> Undefined:
    """The error for a matrix whose centred kernel is zero."""
    return Undefined(
        f"{name}: all pairs of its {n} examples are equally far apart, so there is nothing to"
        " align; use more varied examples"
    )


def _gram(kernel: Tensor, name: str, *, debiased: bool) -> _Gram:
    centred = centred_kernel(kernel, debiased=debiased)
    norm = float(centred.norm())
    if norm <= 1e-12 * float(kernel.norm()):
        raise equally_far(name, len(kernel))
    return _Gram(centred / norm)


def _columns(centred: Tensor, name: str, *, debiased: bool) -> _Columns:
    unit = _Columns(centred / centred.norm(), debiased)
    hsic = unit.hsic(unit)
    if hsic <= 1e-14:
        raise equally_far(name, len(centred))
    # HSIC is of fourth order in the columns: two kernels, each of second order.
    return replace(unit, columns=unit.columns / hsic**0.25)
