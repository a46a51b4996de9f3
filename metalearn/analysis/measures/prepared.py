"""A matrix prepared for a measure: decomposed or multiplied out once, then compared or shuffled at
little cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.analysis.measures.inputs import Activations, Matrix, activations, same

GATHERED = 2**21  # entries of shuffled matrices that are held at a time


class Form(Protocol):
    """One side of a comparison, prepared."""

    def similarity(self, other: Any) -> float:
        """The measure's value against the other side."""

    def chance(self, other: Any, orders: Tensor, generator: torch.Generator) -> Tensor:
        """The values with the other side's examples in each of `orders` (draws, examples) ->
        (draws,).

        If that changes nothing, its neurons are shuffled by the generator.
        """


def _shuffled(rows: Tensor, orders: Tensor) -> Iterator[Tensor]:
    """(examples, features) in each of `orders` (draws, examples) -> (draws, examples, features),
    some draws at a time.
    """
    for some in orders.split(max(1, GATHERED // rows.numel())):
        yield rows[some]


def _joined(values: Iterable[Tensor], like: Tensor) -> Tensor:
    return torch.cat([like.new_zeros(0), *values])


def compared(
    prepare: Callable[[Activations, Activations], tuple[Form, Form]], x: Matrix, y: Matrix
) -> float:
    """The similarity of two matrices (examples, features) that a measure has prepared.

    The same numbers are the same network: exactly 1, without the last bit of a square root.
    """
    left, right = activations(x, "x"), activations(y, "y")
    before, after = prepare(left, right)
    return 1.0 if same(left, right) else before.similarity(after)
