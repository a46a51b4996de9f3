"""Linear systems whose matrix is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Product, vector: Tensor, iterations: int = 10, *, tolerance: float = 1e-10
) -> Tensor:
    """Solve `A x = b` for a positive definite A (Hestenes and Stiefel 1952).

    No value is read, so the operations can be recorded. A system that is solved, or meets a
    direction along which A is not positive, keeps its solution so far.

    Args:
        product: from v to A v.
        vector: b (n,), or (systems, n) for a stack of them.
        iterations: at most; n of them are exact.
        tolerance: of the squared residual.

    Returns:
        x, in the shape of b.

    Example:
        >>> a = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradients(lambda v: a @ v, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])
    """
    x = torch.zeros_like(vector)
    residual = vector
    direction = vector
    squared = _dot(residual, residual)  # (..., 1)
    running = torch.ones_like(squared, dtype=torch.bool)
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        # Rounding can make it zero or negative, where the quadratic has no minimum.
        running = running & (squared >= tolerance) & (curvature > 0)
        length = torch.where(running, squared / curvature, 0.0)
        x = x + length * direction
        residual = residual - length * image
        following = _dot(residual, residual)
        direction = residual + torch.where(running, following / squared, 0.0) * direction
        squared = following
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of (..., n) and (..., n), as (..., 1)."""
    return torch.linalg.vecdot(a, b).unsqueeze(-1)
