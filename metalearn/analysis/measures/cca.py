"""Canonical correlation analysis, and its relatives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.analysis.checks import is_number
from metalearn.analysis.measures.inputs import (
    Activations,
    Matrix,
    Undefined,
    _both,
    activations,
    caution,
    no_variance,
)
from metalearn.analysis.measures.prepared import _joined, _shuffled, compared

CCA_FAMILY = ("cca", "svcca", "pwcca")


def canonical_correlations(x: Matrix, y: Matrix) -> np.ndarray:
    """All canonical correlations of two matrices, largest first: the singular values of `Q_x^T
    Q_y`, clipped to [0, 1].

    `Q` is an orthonormal basis of the centred columns, from a singular value decomposition.
    Constant features are dropped, and so are directions that are rounding: those below 1e-10 of the
    largest (3e-7 for float32 and narrower dtypes, since the output of layer norm sums to a
    constant), and those no larger than the rounding of values of this dtype and size (Hotelling
    1936; Raghu et al. 2017, arXiv:1706.05806). Values that were cast to a wider dtype count as what
    they were before.

    Args:
        x, y: (examples, features), as many examples in both.

    Raises:
        ValueError: different numbers of examples, a value that is not finite, no variance, or
            examples that do not exceed the directions.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> canonical_correlations(x, x[:, :2] @ torch.tensor([[1.0, 2.0], [0.0, 3.0]])).round(6)
        array([1., 1.])
    """
    before, after = _cca_forms(activations(x, "x"), activations(y, "y"))
    return torch.linalg.svdvals(before.basis.T @ after.basis).clamp(0, 1).cpu().numpy()


def cca(x: Matrix, y: Matrix) -> float:
    """Mean canonical correlation of (examples, features) twice: `mean(rho)` over `min(rank x, rank
    y)` correlations.

    Raises ValueError as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(cca(x, x * torch.tensor([1.0, 10.0, 100.0]) + 5), 6)
        1.0
    """
    return compared(_cca_forms, x, y)


def svcca(x: Matrix, y: Matrix, energy: float = 0.99) -> float:
    """Mean canonical correlation of the leading directions: those that hold `energy` of the sum of
    s² of each centred matrix.

    Raghu et al. 2017 (arXiv:1706.05806). Directions whose singular values tie with the last one
    kept are all kept, since any rotation of them would do as well. Raises ValueError as
    `canonical_correlations` does, counting only the directions kept.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(svcca(x, 2 * x), 6)
        1.0
    """
    check_energy(energy)
    return compared(partial(_cca_forms, energy=energy), x, y)


def pwcca(x: Matrix, y: Matrix) -> float:
    """Canonical correlations weighted by how much of `x` each direction explains; not symmetric.

    `sum_i a_i rho_i / sum_i a_i` with `a_i = sum_j |<h_i, x_j>|`, `h_i` the canonical directions of
    `x` and `x_j` its centred columns, whatever the widths (Morcos et al. 2018, arXiv:1806.05759).
    Where correlations tie, the directions are free to rotate, and each of them has the mean weight
    over all rotations. Raises ValueError as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(pwcca(x, -x), 6)
        1.0
    """
    return compared(partial(_cca_forms, weighted=True), x, y)


@dataclass(frozen=True)
class _Directions:
    """An orthonormal `basis` (examples, directions) and the centred columns in it, `coordinates`
    (directions, features).
    """

    basis: Tensor
    coordinates: Tensor
    weighted: bool
    ties: float

    def similarity(self, other: _Directions) -> float:
        cross = self.basis.T @ other.basis
        return (
            weighted_correlation(cross, self.coordinates, max(self.ties, other.ties))
            if self.weighted
            else mean_correlation(cross)
        )

    def chance(self, other: _Directions, orders: Tensor, generator: torch.Generator) -> Tensor:
        if self.weighted:
            return self.basis.new_tensor(
                [self.similarity(replace(other, basis=other.basis[order])) for order in orders]
            )
        crosses = (
            self.basis.T @ bases for bases in _shuffled(other.basis, orders)
        )  # (draws, directions of x, directions of y)
        return _joined(
            (torch.linalg.svdvals(cross).clamp(0, 1).mean(1) for cross in crosses), self.basis
        )


def mean_correlation(cross: Tensor) -> float:
    """The mean of the singular values of `cross`, `Q_x^T Q_y` (directions of x, directions of y)."""
    return float(torch.linalg.svdvals(cross).clamp(0, 1).mean())


def weighted_correlation(cross: Tensor, columns: Tensor, ties: float) -> float:
    """The mean of the singular values of `cross`, weighted as PWCCA does.

    The canonical directions of correlations that tie may be rotated among themselves. Over all
    rotations, the mean of `|<h, x_j>|` for a unit vector h of an m-dimensional space is the length
    of the projection of `x_j` on it times `Γ(m/2) / (√π Γ((m+1)/2))`; for m = 1 that is `|<h,
    x_j>|` itself.

    Args:
        cross: (directions of x, directions of y), `Q_x^T Q_y`.
        columns: (directions of x, features), `Q_x^T X`.
        ties: correlations tie where each is within this of the next.
    """
    # With more directions of x than of y, those that are left over have the correlation 0, and tie
    # with others that do.
    u, rho, _ = torch.linalg.svd(cross, full_matrices=cross.shape[0] > cross.shape[1])
    count, rho = (
        len(rho),
        F.pad(rho.clamp(0, 1), (0, u.shape[1] - len(rho))),
    )  # (directions of x,) or fewer
    group = F.pad(
        (rho[:-1] - rho[1:] > ties).cumsum(0), (1, 0)
    )  # (directions,), the number of each one's group
    size = torch.bincount(group).to(rho)  # (groups,)
    squares = rho.new_zeros(len(size), columns.shape[1]).index_add_(
        0, group, (u.T @ columns).square()
    )
    lengths = squares.sqrt().sum(1)  # (groups,), of all columns projected on the space of the group
    shares = torch.exp(torch.lgamma(size / 2) - torch.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
    weights = (shares * lengths)[group]
    return float(weights[:count] @ rho[:count] / weights[:count].sum())


def check_energy(energy: object) -> None:
    """Raise ValueError if this is not a share of the variance."""
    if not is_number(energy) or not 0 < energy <= 1:  # type: ignore[operator]
        raise ValueError(
            f"energy={energy} must lie in (0, 1]; 0.99 keeps the directions that hold 99 % of the"
            " variance"
        )


def _cca_forms(
    x: Activations, y: Activations, energy: float = 1.0, weighted: bool = False
) -> tuple[_Directions, _Directions]:
    left, right = _both(x, y)
    before, after = (
        _directions(left, x, "x", energy, weighted),
        _directions(right, y, "y", energy, weighted),
    )
    warn_of_certain(len(left), before.basis.shape[1], after.basis.shape[1])
    return before, after


def warn_of_certain(n: int, left: int, right: int) -> None:
    """Warn where `n` examples leave half of the correlations of `left` and `right` directions no
    freedom: they are 1 whatever the data.
    """
    certain = left + right - (n - 1)
    if certain >= min(left, right) / 2:
        caution(
            f"n={n} examples for {left} and {right} directions: {min(certain, left, right)} of"
            f" {min(left, right)} canonical correlations are 1 whatever the data; pool more"
            " examples, or use linear_cka",
            stacklevel=3,
        )


def kept_directions(
    squares: Tensor, found: int, n: int, features: int, name: str, energy: float, ties: float
) -> int:
    """How many of the first `found` directions hold `energy` of the sum of `squares` (directions,),
    with those that tie with the last.

    Raises Undefined where none is found, or they fill the space that `n` centred examples span.
    """
    if not found:
        raise no_variance(name, n)
    kept = found
    if energy < 1:
        share = squares.cumsum(0) / squares.sum()
        last = min(found, int((share < energy).sum()) + 1)
        kept = int((squares[:found] >= (1 - ties) ** 2 * squares[last - 1]).sum())
    if (
        features >= n and kept >= n - 1
    ):  # centred rows sum to zero: n - 1 directions are every direction there is
        raise Undefined(
            f"{name} has n={n} examples and d={features} features that vary: its directions fill"
            " the space of examples, and every canonical correlation is 1 whatever the data. Pool"
            " examples over tasks, keep fewer positions as features, or use svcca with less energy"
            " or linear_cka"
        )
    return kept


def _directions(
    centred: Tensor, x: Activations, name: str, energy: float, weighted: bool
) -> _Directions:
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    n, features = centred.shape
    least, ties = max(x.rounding.share * float(s[0]), x.noise), x.rounding.ties
    kept = kept_directions(s.square(), int((s > least).sum()), n, features, name, energy, ties)
    return _Directions(u[:, :kept], s[:kept, None] * v[:kept], weighted, ties)
