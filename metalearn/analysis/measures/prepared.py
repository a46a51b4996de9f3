"""Matrices prepared for a measure: decomposed once, then compared or shuffled at little cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.analysis.measures.inputs import Activations, Matrix, activations, same

# How many entries of shuffled matrices are in memory at a time.
GATHERED = 2**21


class Form(Protocol):
    """One side of a comparison, prepared."""

    def similarity(self, other: Any) -> float:
        """The measure's value against the other side."""

    def chance(self, other: Any, orders: Tensor, generator: torch.Generator) -> Tensor:
        """The values against the other side with its examples shuffled.

        Args:
            other: the other side.
            orders: (draws, examples), an order of the examples for each draw.
            generator: shuffles neurons instead, for a measure that ignores the order of examples.

        Returns:
            The values (draws,).
        """


def shuffled(rows: Tensor, orders: Tensor) -> Iterator[Tensor]:
    """The rows in each order, a few draws at a time.

    Args:
        rows: (examples, features).
        orders: (draws, examples).

    Yields:
        (some draws, examples, features).
    """
    for some_orders in orders.split(max(1, GATHERED // rows.numel())):
        yield rows[some_orders]


def joined(values: Iterable[Tensor], like: Tensor) -> Tensor:
    """Values (some draws,) as one tensor (draws,), which is empty without draws."""
    return torch.cat([like.new_zeros(0), *values])


def compared(
    prepare: Callable[[Activations, Activations], tuple[Form, Form]], x: Matrix, y: Matrix
) -> float:
    """The similarity of two matrices (examples, features).

    Args:
        prepare: brings both matrices into the form that the measure needs.
        x: (examples, features).
        y: (examples, other features).
    """
    left = activations(x, "x")
    right = activations(y, "y")
    before, after = prepare(left, right)
    if same(left, right):
        return 1.0  # exactly, without the rounding of the last bit
    return before.similarity(after)
