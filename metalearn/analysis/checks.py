"""Checks of the arguments of an analysis.

Every error names the value and what to pass instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from metalearn.episodes import Episode, unstack


def check_kind(value: Any, kind: type | tuple[type, ...], name: str, cure: str) -> None:
    """Raise TypeError if `value` is not of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; {cure}")


def check_all(values: Any, kind: type | tuple[type, ...], name: str, cure: str) -> list[Any]:
    """The values as a list.

    Raises:
        TypeError: `values` cannot be iterated over, or one of them is of another kind.
    """
    check_kind(values, Iterable, name, cure)
    listed = list(values)
    for number, value in enumerate(listed):
        check_kind(value, kind, f"{name}[{number}]", cure)
    return listed


def single_tasks(episodes: Any) -> Sequence[Episode]:
    """Single tasks by index, from a `FewShot` or from one stack of tasks.

    Raises:
        TypeError: `episodes` is anything else.
        ValueError: there are no tasks.
    """
    tasks = unstack(episodes) if isinstance(episodes, Episode) else episodes
    # A DataLoader has a length, but no index.
    if not hasattr(tasks, "__len__") or not hasattr(tasks, "__getitem__"):
        raise TypeError(
            f"episodes must be a FewShot or one stack of tasks, not {type(tasks).__name__}; of a"
            " DataLoader, pass its data set"
        )
    if not len(tasks):
        raise ValueError("episodes holds no tasks; pass at least 20")
    return tasks


def listed(names: Any, argument: str) -> list[Any]:
    """Names of layers as a list.

    Raises:
        TypeError: `names` is a string, whose letters would be taken for names.
        ValueError: there are no names.
    """
    if isinstance(names, str):
        raise TypeError(
            f"{argument}={names!r} is one string; give a list of names: {argument}=[{names!r}]"
        )
    check_kind(names, Iterable, argument, "give a list of names")
    names = list(names)
    if not names:
        raise ValueError(
            f"{argument}=[] names no layer; name one or more, or leave {argument} out for all"
        )
    return names


def check_draws(draws: int | None, seed: int) -> tuple[int | None, int]:
    """Both as Python integers; `draws` may be None.

    Raises:
        ValueError: `draws` is not a count, or `seed` does not fit a generator.
    """
    if draws is not None:
        draws = check_count(draws)
    return draws, check_seed(seed)


def check_count(draws: int) -> int:
    """The number of draws as a Python integer.

    Raises:
        ValueError: it is not a whole number from 0 on.
    """
    return check_whole(draws, "draws", 0, "the number of shuffles of one side")


def check_seed(seed: int) -> int:
    """The seed as a Python integer.

    Raises:
        ValueError: it does not fit a generator.
    """
    # Seeds are added to the numbers of tasks, and a generator takes 64 bits.
    if not is_whole(seed) or not -(2**62) <= seed < 2**62:
        raise ValueError(f"seed={seed!r} must be a whole number below 2**62")
    return int(seed)


def check_groups(groups: int, rows: int) -> None:
    """Raise ValueError if `rows` examples do not divide into `groups` blocks of one size."""
    if not is_whole(groups) or groups < 1 or rows % groups:
        raise ValueError(
            f"{rows} examples do not divide into groups={groups} equal blocks; choose a divisor of"
            f" {rows}"
        )


def check_whole(value: int, name: str, least: int, meaning: str) -> int:
    """The value as a Python integer.

    Raises:
        ValueError: it is not a whole number from `least` on.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number from {least} on: {meaning}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or numpy; a bool is not one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or numpy; a bool is not one."""
    return isinstance(value, Real) and not isinstance(value, bool)
