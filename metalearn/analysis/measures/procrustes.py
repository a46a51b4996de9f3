"""Orthogonal Procrustes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.analysis.measures.inputs import Activations, Matrix, _both
from metalearn.analysis.measures.prepared import _joined, _shuffled, compared


def procrustes(x: Matrix, y: Matrix) -> float:
    """How well a rotation and a scale take one centred matrix to the other: `||X^T Y||_* / (||X||_F
    ||Y||_F)`.

    The nuclear norm over the product of Frobenius norms (Ding et al. 2021, arXiv:2108.01661, as a
    similarity). Any widths. Raises ValueError as `linear_cka` does.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(procrustes(x, -2 * x.flip(1)), 6)
        1.0
    """
    return compared(_procrustes_forms, x, y)


@dataclass(frozen=True)
class _Shape:
    """Centred columns (examples, features) of Frobenius norm 1."""

    columns: Tensor

    def similarity(self, other: _Shape) -> float:
        return min(1.0, float(torch.linalg.svdvals(self.columns.T @ other.columns).sum()))

    def chance(self, other: _Shape, orders: Tensor, generator: torch.Generator) -> Tensor:
        crosses = (self.columns.T @ columns for columns in _shuffled(other.columns, orders))
        return _joined((torch.linalg.svdvals(cross).sum(1) for cross in crosses), self.columns)


def _procrustes_forms(x: Activations, y: Activations) -> tuple[_Shape, _Shape]:
    # More features than examples: a rotation takes the columns to as many as there are examples,
    # and the measure ignores it.
    left, right = (
        torch.linalg.qr(side.T, mode="r")[1].T if side.shape[1] > len(side) else side
        for side in _both(x, y)
    )
    return _Shape(left / left.norm()), _Shape(right / right.norm())
