"""From the output of a layer to a matrix: what is an example, and what is a feature."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.analysis.measures.cca import CCA_FAMILY
from metalearn.analysis.measures.chance import operations

CONVENTIONS = {
    "flatten": "an example a row, all its channels and positions as features",
    "positions": "a position of an example a row, its channels as features",
    "pool": "an example a row, its channels averaged over positions as features",
}


def check_convention(convention: str | None, measure: str) -> str:
    """The convention, by default that of the measure. Raises ValueError for an unknown one."""
    if not convention:
        return "positions" if measure in CCA_FAMILY else "flatten"
    if convention not in CONVENTIONS:
        raise ValueError(
            f"there is no convention {convention!r}; there are {', '.join(CONVENTIONS)}"
        )
    return convention


def matrices(
    before: Tensor, after: Tensor, convention: str, rows: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Two outputs as matrices whose rows are the same examples.

    Args:
        before: (examples, ...).
        after: (examples, ...).
        convention: one of `CONVENTIONS`.
        rows: about how many rows "positions" keeps.
        seed: determines which positions.

    Returns:
        (rows, features of before) and (rows, features of after).

    Raises:
        ValueError: the two have different numbers of positions.
    """
    x = matrix(before, convention, rows, seed)
    y = matrix(after, convention, rows, seed)
    if len(x) != len(y) and len(before) == len(after):
        raise ValueError(
            f"{len(x)} rows before and {len(y)} after: the two have other numbers of positions;"
            " compare them with convention='pool'"
        )
    return x, y


def matrix(output: Tensor, convention: str, rows: int, seed: int) -> Tensor:
    """An output (examples, ...) as a matrix (rows, features)."""
    if output.ndim < 2 or convention == "flatten":
        return output.reshape(len(output), -1)
    if convention == "pool":
        pooled = tokens(output).to(torch.float64).mean(1)  # (examples, features)
        return pooled.to(output.dtype) if output.is_floating_point() else pooled
    return sample(output, rows, seed).flatten(0, 1)  # (examples x positions, features)


def tokens(output: Tensor) -> Tensor:
    """An output with its positions in the second dimension.

    Args:
        output: images (examples, channels, height, width), tokens (examples, positions, features),
            or vectors (examples, features).

    Returns:
        (examples, positions, features).
    """
    if output.ndim == 2:
        return output[:, None]  # one position
    if output.ndim == 3:
        return output
    return output.flatten(2).mT


def sample(output: Tensor, rows: int, seed: int) -> Tensor:
    """The same random positions of every example, about `rows` in all.

    Args:
        output: (examples, ...), as `tokens` takes it.
        rows: how many rows, examples times positions, to keep.
        seed: determines the positions.

    Returns:
        (examples, some positions, features).
    """
    every = tokens(output)
    positions = every.shape[1]
    count = min(positions, max(1, rows // len(every)))
    if count == positions:
        return every
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].sort().values
    return every[:, chosen.to(every.device)]


def matrix_sizes(
    before: Tensor, after: Tensor, convention: str, rows: int
) -> tuple[int, tuple[int, int]]:
    """The examples and both widths of the matrices that `matrices` would make."""
    # The meta device holds shapes without values.
    x = matrix(before.to("meta"), convention, rows, seed=0)
    y = matrix(after.to("meta"), convention, rows, seed=0)
    return len(x), (x.shape[1], y.shape[1])


def draw_operations(
    measure: str, before: Tensor, after: Tensor, convention: str, rows: int
) -> float:
    """Floating-point operations of one draw of a layer's chance level (`operations`)."""
    examples, features = matrix_sizes(before, after, convention, rows)
    return operations(measure, examples, features)
