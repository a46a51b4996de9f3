"""Orthogonal Procrustes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.analysis.measures.inputs import Activations, Matrix, both_centred
from metalearn.analysis.measures.prepared import compared, joined, shuffled


def procrustes(x: Matrix, y: Matrix) -> float:
    """How well a rotation and a scale map one centred matrix onto the other.

    `||X^T Y||_* / (||X||_F ||Y||_F)`, the nuclear norm over the product of Frobenius norms. This is
    the distance of Ding et al. 2021 (arXiv:2108.01661), `||X||² + ||Y||² - 2 ||X^T Y||_*`, for
    matrices of norm 1, as a similarity. Invariant to rotations, reflections, isotropic scaling and
    translations of either side. The widths may differ.

    Args:
        x: (examples, features).
        y: (examples, other features).

    Raises:
        ValueError: different numbers of examples, a value that is not finite, or no variance.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(procrustes(x, -2 * x.flip(1)), 6)
        1.0
    """
    return compared(procrustes_forms, x, y)


@dataclass(frozen=True)
class _Shape:
    """Centred columns (examples, features) of Frobenius norm 1."""

    columns: Tensor

    def similarity(self, other: _Shape) -> float:
        # max_R tr(R^T X^T Y) over rotations R is the nuclear norm of X^T Y.
        return min(1.0, float(torch.linalg.svdvals(self.columns.T @ other.columns).sum()))

    def chance(self, other: _Shape, orders: Tensor, generator: torch.Generator) -> Tensor:
        crosses = (self.columns.T @ columns for columns in shuffled(other.columns, orders))
        return joined((torch.linalg.svdvals(cross).sum(1) for cross in crosses), self.columns)


def procrustes_forms(x: Activations, y: Activations) -> tuple[_Shape, _Shape]:
    """Both matrices centred and scaled to norm 1."""
    left, right = map(_at_most_square, both_centred(x, y))
    return _Shape(left / left.norm()), _Shape(right / right.norm())


def _at_most_square(columns: Tensor) -> Tensor:
    """The columns, rotated into as many as there are examples if they are more."""
    if columns.shape[1] <= len(columns):
        return columns
    # X^T = Q R, so X Q = R^T (examples, examples): the measure ignores the rotation Q.
    return torch.linalg.qr(columns.T, mode="r")[1].T
