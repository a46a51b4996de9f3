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
    activations,
    both_centred,
    caution,
    no_variance,
)
from metalearn.analysis.measures.prepared import compared, joined, shuffled

CCA_FAMILY = ("cca", "svcca", "pwcca")


def canonical_correlations(x: Matrix, y: Matrix) -> np.ndarray:
    """All canonical correlations of two matrices, largest first.

    They are the singular values of `Q_x^T Q_y`, clipped to [0, 1], with `Q` an orthonormal basis of
    the centred columns (Hotelling 1936; Raghu et al. 2017, arXiv:1706.05806). Invariant to any
    invertible linear map and any translation of either side.

    The basis comes from a singular value decomposition. Constant features are dropped, and so are
    directions that are rounding: those below 1e-10 of the largest (3e-7 for float32 and narrower
    dtypes, because the output of layer norm sums to a constant), and those no larger than the
    rounding of values of this dtype and size. Values that were cast to a wider dtype count as their
    original dtype.

    Args:
        x: (examples, features).
        y: (examples, other features).

    Raises:
        ValueError: different numbers of examples, a value that is not finite, no variance, or no
            more examples than directions.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> canonical_correlations(x, x[:, :2] @ torch.tensor([[1.0, 2.0], [0.0, 3.0]])).round(6)
        array([1., 1.])
    """
    before, after = cca_forms(activations(x, "x"), activations(y, "y"))
    cross = before.basis.T @ after.basis
    return torch.linalg.svdvals(cross).clamp(0, 1).cpu().numpy()


def cca(x: Matrix, y: Matrix) -> float:
    """Mean canonical correlation.

    `mean_i(rho_i)` over the min(rank x, rank y) canonical correlations (Hotelling 1936; Raghu et
    al. 2017, arXiv:1706.05806). Invariant to any invertible linear map and any translation of
    either side. The widths may differ.

    Args:
        x: (examples, features).
        y: (examples, other features).

    Raises:
        ValueError: as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(cca(x, x * torch.tensor([1.0, 10.0, 100.0]) + 5), 6)
        1.0
    """
    return compared(cca_forms, x, y)


def svcca(x: Matrix, y: Matrix, energy: float = 0.99) -> float:
    """Mean canonical correlation of the leading singular directions.

    `mean_i(rho_i)` of the truncated matrices `U_k S_k`, with the smallest k for which
    `sum_{i <= k} s_i² >= energy sum_i s_i²` on each side (Raghu et al. 2017, arXiv:1706.05806).
    Directions whose singular values tie with the k-th are kept too, because any rotation of them
    is as good. Invariant to rotations, reflections, isotropic scaling and translations of either
    side. The widths may differ.

    Args:
        x: (examples, features).
        y: (examples, other features).
        energy: the share of the variance to keep, in (0, 1].

    Raises:
        ValueError: as `canonical_correlations` does, for the directions that are kept.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(svcca(x, 2 * x), 6)
        1.0
    """
    check_energy(energy)
    return compared(partial(cca_forms, energy=energy), x, y)


def pwcca(x: Matrix, y: Matrix) -> float:
    """Canonical correlations weighted by how much of `x` their directions explain.

    `sum_i a_i rho_i / sum_i a_i` with `a_i = sum_j |<h_i, x_j>|`, `h_i` the canonical directions of
    `x` and `x_j` its centred columns (Morcos et al. 2018, arXiv:1806.05759). Not symmetric: the
    weights come from the first argument, whatever the widths. Invariant to isotropic scaling of
    `x`, to any invertible linear map of `y`, and to translations of either. If correlations tie,
    their directions are free to rotate, and each has the mean weight over all rotations.

    Args:
        x: (examples, features).
        y: (examples, other features).

    Raises:
        ValueError: as `canonical_correlations` does.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> round(pwcca(x, -x), 6)
        1.0
    """
    return compared(partial(cca_forms, weighted=True), x, y)


@dataclass(frozen=True)
class _Directions:
    """The directions of one side that are kept.

    Attributes:
        basis: orthonormal, (examples, directions).
        coordinates: the centred columns in that basis, (directions, features).
        weighted: whether correlations are weighted, as PWCCA does.
        ties: the difference below which correlations are equal.
    """

    basis: Tensor
    coordinates: Tensor
    weighted: bool
    ties: float

    def similarity(self, other: _Directions) -> float:
        cross = self.basis.T @ other.basis
        if not self.weighted:
            return mean_correlation(cross)
        return weighted_correlation(cross, self.coordinates, max(self.ties, other.ties))

    def chance(self, other: _Directions, orders: Tensor, generator: torch.Generator) -> Tensor:
        if self.weighted:
            sides = (replace(other, basis=other.basis[order]) for order in orders)
            return self.basis.new_tensor([self.similarity(side) for side in sides])
        # (some draws, directions of x, directions of y) each
        crosses = (self.basis.T @ bases for bases in shuffled(other.basis, orders))
        means = (torch.linalg.svdvals(cross).clamp(0, 1).mean(1) for cross in crosses)
        return joined(means, self.basis)


def mean_correlation(cross: Tensor) -> float:
    """The mean of the singular values of `Q_x^T Q_y` (directions of x, directions of y)."""
    return float(torch.linalg.svdvals(cross).clamp(0, 1).mean())


def weighted_correlation(cross: Tensor, columns: Tensor, ties: float) -> float:
    """The mean of the singular values of `Q_x^T Q_y`, weighted as PWCCA does.

    The canonical directions of tied correlations may be rotated among themselves. Over all
    rotations, the mean of `|<h, x_j>|` for a unit vector h of an m-dimensional space is the norm of
    the projection of `x_j` onto it, times `Γ(m/2) / (√π Γ((m+1)/2))`. For m = 1 this is
    `|<h, x_j>|` itself.

    Args:
        cross: `Q_x^T Q_y` (directions of x, directions of y).
        columns: `Q_x^T X` (directions of x, features).
        ties: correlations tie if each is within this of the next.
    """
    # Q_x^T Q_y = U diag(rho) V^T, and h_i = Q_x u_i. If x has more directions than y, the surplus
    # has the correlation 0, and ties with any others of correlation 0.
    u, rho, _ = torch.linalg.svd(cross, full_matrices=cross.shape[0] > cross.shape[1])
    count = len(rho)
    rho = F.pad(rho.clamp(0, 1), (0, u.shape[1] - count))  # (directions,)
    # A new group of ties begins wherever the correlation drops.
    drops = rho[:-1] - rho[1:] > ties
    group = F.pad(drops.cumsum(0), (1, 0))  # (directions,), the group of each
    size = torch.bincount(group).to(rho)  # (groups,), the m of each
    # <h_i, x_j> = (U^T Q_x^T X)_ij; its squares, summed over a group, are those of the projection.
    squares = rho.new_zeros(len(size), columns.shape[1])  # (groups, features)
    squares.index_add_(0, group, (u.T @ columns).square())
    lengths = squares.sqrt().sum(1)  # (groups,), summed over the columns x_j
    log_shares = torch.lgamma(size / 2) - torch.lgamma((size + 1) / 2)
    shares = torch.exp(log_shares) / math.sqrt(math.pi)  # Γ(m/2) / (√π Γ((m+1)/2))
    weights = (shares * lengths)[group]  # a_i (directions,)
    # sum_i a_i rho_i / sum_i a_i
    return float(weights[:count] @ rho[:count] / weights[:count].sum())


def check_energy(energy: object) -> None:
    """Raise ValueError if `energy` is not a share of the variance."""
    if not is_number(energy) or not 0 < energy <= 1:  # type: ignore[operator]
        raise ValueError(
            f"energy={energy} must lie in (0, 1]; 0.99 keeps the directions that hold 99 % of the"
            " variance"
        )


def cca_forms(
    x: Activations, y: Activations, energy: float = 1.0, *, weighted: bool = False
) -> tuple[_Directions, _Directions]:
    """Both matrices as orthonormal directions."""
    left, right = both_centred(x, y)
    before = _directions(left, x, "x", energy, weighted=weighted)
    after = _directions(right, y, "y", energy, weighted=weighted)
    warn_if_certain(len(left), before.basis.shape[1], after.basis.shape[1])
    return before, after


def warn_if_certain(n: int, left: int, right: int) -> None:
    """Warn if at least half of the canonical correlations are 1 for any data.

    Subspaces of `left` and `right` dimensions in the n - 1 dimensions of centred examples share at
    least `left + right - (n - 1)` dimensions.
    """
    certain = left + right - (n - 1)
    if certain >= min(left, right) / 2:
        caution(
            f"n={n} examples for {left} and {right} directions: {min(certain, left, right)} of"
            f" {min(left, right)} canonical correlations are 1 whatever the data; pool more"
            " examples, or use linear_cka",
            stacklevel=3,
        )


def directions_kept(
    squares: Tensor, rank: int, *, energy: float, ties: float, n: int, features: int, name: str
) -> int:
    """How many directions hold `energy` of the variance, including ties with the last.

    Args:
        squares: squared singular values (directions,), largest first.
        rank: how many of them are more than rounding.
        energy: the share of their sum to keep.
        ties: the relative difference below which singular values are equal.
        n: the number of examples.
        features: the number of features that vary.
        name: what to call the matrix in errors.

    Raises:
        Undefined: there is no direction, or they fill the space that n centred examples span.
    """
    if not rank:
        raise no_variance(name, n)
    kept = rank
    if energy < 1:
        # The smallest k with sum_{i <= k} s_i² >= energy sum_i s_i², then all that tie with s_k.
        shares = squares.cumsum(0) / squares.sum()
        last = min(rank, int((shares < energy).sum()) + 1)
        kept = int((squares[:rank] >= (1 - ties) ** 2 * squares[last - 1]).sum())
    # Centred examples sum to zero, so there are at most n - 1 directions.
    if features >= n and kept >= n - 1:
        raise Undefined(
            f"{name} has n={n} examples and d={features} features that vary: its directions fill"
            " the space of examples, and every canonical correlation is 1 whatever the data. Pool"
            " examples over tasks, keep fewer positions as features, or use svcca with less energy"
            " or linear_cka"
        )
    return kept


def _directions(
    centred: Tensor, x: Activations, name: str, energy: float, *, weighted: bool
) -> _Directions:
    # X = U S V^T: the basis is U, and the coordinates U^T X = S V^T.
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    n, features = centred.shape
    ties = x.rounding.ties
    rounding = max(x.rounding.share * float(s[0]), x.noise)
    rank = int((s > rounding).sum())
    kept = directions_kept(
        s.square(), rank, energy=energy, ties=ties, n=n, features=features, name=name
    )
    return _Directions(u[:, :kept], s[:kept, None] * v[:kept], weighted, ties)
