"""Checks of the numbers that users pass, before any work is done with them."""

from __future__ import annotations

import math
import numbers
import os
from operator import index
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_LARGEST = 2**63 - 1  # what fits a size of PyTorch


def whole_number(name: str, value: object, least: int | None = 1) -> int:
    """Check that `value` is a whole number, and return it as an int.

    Args:
        name: what the number is called, for the message.
        value: an int, or an integer scalar of numpy or torch.
        least: the smallest value allowed; None for no bound.

    Raises:
        TypeError: `value` is not a whole number. Neither a bool nor a float is one.
        ValueError: `value` is below `least`, or does not fit 64 bits.

    Example:
        >>> whole_number("steps", 3)
        3
    """
    cure = "it must be a whole number"
    if least is not None:
        cure += f" of at least {least}"
    try:
        if isinstance(value, bool):  # an int for Python, but a mistake in a setting
            raise TypeError
        number = index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {cure}") from error
    if least is not None and number > _LARGEST:
        raise ValueError(f"{name}={number} does not fit 64 bits; give a smaller number")
    if least is not None and number < least:
        raise ValueError(f"{name}={number} must be at least {least}; {cure}")
    return number


def positive(**numbers: object) -> tuple[int, ...]:
    """Check that all numbers are whole and at least 1, and return them as ints.

    Raises:
        TypeError: a number is not a whole number.
        ValueError: a number is below 1.

    Example:
        >>> positive(ways=5, shots=1)
        (5, 1)
    """
    return tuple(whole_number(name, number) for name, number in numbers.items())


def sequence(name: str, values: object, example: str) -> list[Any]:
    """Check that `values` is a sequence, and return it as a list.

    Args:
        name: what the values are called, for the message.
        values: any iterable except a string.
        example: what to write instead, for the message.

    Raises:
        TypeError: `values` is not iterable, or is one string.

    Example:
        >>> sequence("hidden", (40, 40), "(40, 40)")
        [40, 40]
    """
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        iterator = iter(values)  # type: ignore[call-overload]
    except TypeError as error:
        raise TypeError(
            f"{name}={values!r:.60} is a {type(values).__name__}; give a list, such as {example}"
        ) from error
    return list(iterator)


def widths_of_layers(name: str, values: object, example: str) -> list[int]:
    """Check the widths of a network's layers, and return them as a list of ints.

    Raises:
        TypeError: `values` is not a sequence of whole numbers.
        ValueError: a width is below 1.

    Example:
        >>> widths_of_layers("hidden", (40, 40), "(40, 40)")
        [40, 40]
    """
    return [
        whole_number(f"{name}[{place}]", width)
        for place, width in enumerate(sequence(name, values, example))
    ]


def positive_number(name: str, value: object, cure: str = "") -> float:
    """Check that `value` is finite and above 0, and return it as a float.

    Args:
        name: what the number is called, for the message.
        value: a number, or a scalar of numpy or torch.
        cure: what to do instead, added to the message.

    Raises:
        TypeError: `value` is not a number. Neither a bool nor a string is one.
        ValueError: `value` is zero, negative, NaN or infinite.

    Example:
        >>> positive_number("outer_lr", 1e-3)
        0.001
    """
    needed = "it must be a finite number above 0"
    if cure:
        needed += f"; {cure}"
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {needed}") from error
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number:g}: {needed}")
    return number


def is_kind(value: Any, hint: Any) -> bool:
    """Whether a value fits the type of a setting.

    A whole number also fits float, and a path also fits str.
    """
    kinds = kinds_of(hint)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, numbers.Integral):
        return int in kinds or float in kinds
    if isinstance(value, numbers.Real):
        return float in kinds
    if isinstance(value, str | os.PathLike):
        return str in kinds
    return type(value) in kinds


def kinds_of(hint: Any) -> set[Any]:
    """The types that a setting may have."""
    if get_origin(hint) is Literal:
        return {type(choice) for choice in get_args(hint)}
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(kinds_of, get_args(hint)))
    return {get_origin(hint) or hint}
