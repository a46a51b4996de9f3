"""Checks of the numbers that users pass, before any work is done with them."""

from __future__ import annotations

import math
from operator import index


def whole_number(name: str, value: object, least: int | None = 1) -> int:
    """Return `value` as an int.

    Args:
        name: what the number is called, for the message.
        value: an int, or an integer scalar of numpy or torch.
        least: the smallest value allowed; None for no bound.

    Raises:
        TypeError: if `value` is no whole number; a bool and a float are none.
        ValueError: if it is below `least`.

    Example:
        >>> whole_number("steps", 3)
        3
    """
    cure = "it must be a whole number" + ("" if least is None else f" of at least {least}")
    try:
        if isinstance(value, bool):  # an int for Python, but a mistake in a setting
            raise TypeError
        number = index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {cure}") from error
    if least is not None and number < least:
        raise ValueError(f"{name}={number} must be at least {least}; {cure}")
    return number


def positive_number(name: str, value: object, cure: str = "") -> float:
    """Return `value` as a float.

    Args:
        name: what the number is called, for the message.
        value: a finite number above 0, or a scalar of numpy or torch.
        cure: what to do instead, added to the message.

    Raises:
        TypeError: if `value` is no number; a bool and a string are none.
        ValueError: if it is zero, negative, NaN or infinite.

    Example:
        >>> positive_number("outer_lr", 1e-3)
        0.001
    """
    needed = f"it must be a finite number above 0{cure and '; '}{cure}"
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {needed}") from error
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number:g}: {needed}")
    return number
