"""What a penalty is: something that is added to a training loss.

A penalty is entered once per training, with the model, and gives a function that is called after
every forward pass. What that function returns, a scalar, is added to the loss.

A penalty that remembers something from step to step returns an object with `__call__`,
`state_dict()` and `load_state_dict(state)` in the place of a function, so that a training that was
stopped continues with what it remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

Extra: TypeAlias = Callable[[], Tensor]
Penalty: TypeAlias = Callable[[nn.Module], AbstractContextManager[Extra]]


@runtime_checkable
class Stateful(Protocol):
    """What a penalty gives that remembers something from step to step."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers: tensors, numbers, and lists and dictionaries of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""


def state_of(extra: Extra) -> dict[str, Any]:
    """What a penalty remembers; nothing if it is a plain function."""
    return extra.state_dict() if isinstance(extra, Stateful) else {}


def load_state(extra: Extra, state: dict[str, Any]) -> None:
    """Give a penalty what `state_of` returned."""
    if isinstance(extra, Stateful):
        extra.load_state_dict(state)


def enter(penalty: Penalty, model: nn.Module) -> AbstractContextManager[Extra]:
    """The context manager of a penalty for a training of `model`.

    Raises:
        TypeError: `penalty` returns none.
    """
    entered = penalty(model)
    if not isinstance(entered, AbstractContextManager):
        raise TypeError(
            f"penalty={penalty!r} returned a {type(entered).__name__} for the model; a penalty"
            " returns a context manager, such as pulled(weights) or a function under"
            " contextlib.contextmanager"
        )
    return entered


def reads_outputs(penalty: Penalty) -> bool:
    """Whether a penalty says that it depends on outputs of the network, not on weights alone."""
    return bool(getattr(penalty, "reads_outputs", False))


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

    @property
    def reads_outputs(self) -> bool:
        """Whether one of them depends on outputs of the network."""
        return any(map(reads_outputs, self.penalties))

    def __repr__(self) -> str:
        return f"together({', '.join(map(repr, self.penalties))})"

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Extra]:
        """Enter all penalties for a training of `model`."""
        with ExitStack() as stack:
            yield _Sum([stack.enter_context(enter(part, model)) for part in self.penalties])


class _Sum:
    """The sum of what several penalties add."""

    def __init__(self, extras: Sequence[Extra]) -> None:
        self.extras = extras

    def __call__(self) -> Tensor:
        return torch.stack([extra() for extra in self.extras]).sum()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): state_of(extra) for number, extra in enumerate(self.extras)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, extra in enumerate(self.extras):
            load_state(extra, state[str(number)])


def check_from_zero(name: str, value: float) -> None:
    """Raise ValueError for a number that is not finite and from 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}; give a finite number from 0")
