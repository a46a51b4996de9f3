"""Centred kernel alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import is_number
from metalearn.analysis.measures.inputs import Activations, Matrix, Undefined, _both
from metalearn.analysis.measures.prepared import GATHERED, Form, _joined, _shuffled, compared


def linear_cka(x: Matrix, y: Matrix, debiased: bool = True) -> float:
    """Linear centred kernel alignment: `||Y^T X||² / (||X^T X|| ||Y^T Y||)` of the centred
    matrices, Frobenius norms.

    Kornblith et al. 2019 (arXiv:1905.00414). `debiased` takes the U-statistic of Song et al. (2007)
    for each of the three terms: about 0 for unrelated matrices at any width (it may be negative),
    where the biased value of 75 examples in thousands of features is near 1.

    Args:
        x, y: (examples, features), as many examples in both; at least 4 where debiased.

    Raises:
        ValueError: different numbers of examples, too few, a value that is not finite, or no
            variance.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(75, 4000, generator=rng), torch.randn(75, 4000, generator=rng)
        >>> round(linear_cka(x, y, debiased=False), 2), round(linear_cka(x, y), 2)
        (0.98, 0.01)
    """
    return compared(partial(_linear_forms, debiased=debiased), x, y)


def rbf_cka(x: Matrix, y: Matrix, fraction: float = 0.5, debiased: bool = False) -> float:
    """CKA with the kernel `exp(-D² / (2 fraction² median(D²)))`, the median over squared distances
    with the zero diagonal.

    Kornblith et al. 2019 (arXiv:1905.00414). Arguments and errors as `linear_cka`'s; holds an
    examples x examples matrix.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(rbf_cka(x, 3 * x + 1), 6)
        1.0
    """
    check_fraction(fraction)
    return compared(partial(_rbf_forms, fraction=fraction, debiased=debiased), x, y)


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
        return _joined(
            (entries[order[:, i] * n + order[:, j]] @ weights for order in some), self.kernel
        )


@dataclass(frozen=True)
class _Columns:
    """Centred columns (examples, features), scaled so that the alignment with itself is 1: linear
    CKA for more examples than features.
    """

    columns: Tensor
    debiased: bool

    def alignment(self, other: _Columns) -> float:
        x, y, n = self.columns, other.columns, len(self.columns)
        cross = float((x.T @ y).square().sum())
        if not self.debiased:
            return cross
        rows_x, rows_y = x.square().sum(1), y.square().sum(1)
        return (
            cross
            - n / (n - 2) * float(rows_x @ rows_y)
            + float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))
        )

    def similarity(self, other: _Columns) -> float:
        return min(1.0, self.alignment(other))

    def chance(self, other: _Columns, orders: Tensor, generator: torch.Generator) -> Tensor:
        shuffled = _shuffled(other.columns, orders)
        crosses = _joined(
            ((self.columns.T @ columns).square().sum((1, 2)) for columns in shuffled), self.columns
        )
        return self._debiased(other, crosses, orders) if self.debiased else crosses

    def _debiased(self, other: _Columns, crosses: Tensor, orders: Tensor) -> Tensor:
        n, rows_x, rows_y = (
            len(self.columns),
            self.columns.square().sum(1),
            other.columns.square().sum(1),
        )
        return (
            crosses
            - n / (n - 2) * (rows_y[orders] @ rows_x)
            + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
        )


def check_fraction(fraction: object) -> None:
    """Raise ValueError if this is no width of a kernel."""
    if not is_number(fraction) or not 0 < fraction < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"fraction={fraction} must be above 0 and finite: it is the kernel's width as a"
            " fraction of the median distance"
        )


def _linear_forms(x: Activations, y: Activations, debiased: bool = True) -> tuple[Form, Form]:
    left, right = _both(x, y, fewest=4 if debiased else 2)
    if len(left) <= max(left.shape[1], right.shape[1]):
        return _gram(left @ left.T, "x", debiased), _gram(right @ right.T, "y", debiased)
    return _columns(left, "x", debiased), _columns(right, "y", debiased)


def _rbf_forms(
    x: Activations, y: Activations, fraction: float = 0.5, debiased: bool = False
) -> tuple[_Gram, _Gram]:
    left, right = _both(x, y, fewest=4 if debiased else 2)
    return tuple(
        _gram(rbf_kernel(side, name, fraction), name, debiased)
        for side, name in ((left, "x"), (right, "y"))
    )  # type: ignore[return-value]


def rbf_kernel(centred: Tensor, name: str, fraction: float) -> Tensor:
    """`exp(-D² / (2 fraction² median(D²)))` of (examples, features) -> (examples, examples)."""
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


def centred_kernel(kernel: Tensor, debiased: bool) -> Tensor:
    """A kernel (examples, examples) centred so that the inner product of two is HSIC, times (n -
    1)² or, debiased, n (n - 3).
    """
    n = len(kernel)
    if not debiased:
        means = kernel.mean(0)
        return kernel - means[:, None] - means + means.mean()
    kernel = (
        kernel.clone()
    )  # Szekely and Rizzo 2014: the inner product of kernels centred this way is the U-statistic
    kernel.fill_diagonal_(0)
    means = kernel.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    return (kernel - means[:, None] - means).fill_diagonal_(0)


def equally_far(name: str, n: int) -> Undefined:
    """The error for a matrix whose centred kernel is nought."""
    return Undefined(
        f"{name}: all pairs of its {n} examples are equally far apart, so nothing is left to align;"
        " use more varied examples"
    )


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
