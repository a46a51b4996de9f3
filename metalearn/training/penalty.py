"""What a penalty is: something that is added to a training loss.

A penalty is entered once per training, with the model, and gives a function that is called after
every forward pass. What that function returns, a scalar, is added to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

Extra: TypeAlias = Callable[[], Tensor]
Penalty: TypeAlias = Callable[[nn.Module], AbstractContextManager[Extra]]


@contextmanager
def no_penalty(model: nn.Module) -> Iterator[Extra]:
    """The penalty that adds nothing."""
    zero = torch.zeros(())
    yield lambda: zero


class together:
    """The sum of several penalties.

    Args:
        *penalties: each is entered, and their values are added.

    Example:
        >>> from metalearn.training.regularisers import pulled
        >>> model = nn.Linear(2, 1)
        >>> both = together(pulled(model, 1.0), pulled(model, 2.0))
        >>> with both(model) as extra:
        ...     extra().item()
        0.0
    """

    def __init__(self, *penalties: Penalty) -> None:
        self.penalties = penalties

    def __repr__(self) -> str:
        return f"together({', '.join(map(repr, self.penalties))})"

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Extra]:
        """Enter all penalties for a training of `model`."""
        with ExitStack() as stack:
            extras = [stack.enter_context(penalty(model)) for penalty in self.penalties]
            yield lambda: torch.stack([extra() for extra in extras]).sum()
