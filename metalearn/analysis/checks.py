"""Checks of what a question is asked with; every error names the value and what to give instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from metalearn.episodes import Episode, unstack


def check_kind(value: Any, kind: type | tuple[type, ...], name: str, cure: str) -> None:
    """Raise TypeError where `value` is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; {cure}")


def check_all(values: Any, kind: type, name: str, cure: str) -> list[Any]:
    """The values as a list.

    Raises TypeError where one of them is of another kind, or there is nothing to go through.
    """
    check_kind(values, Iterable, name, cure)
    listed = list(values)
    for number, value in enumerate(listed):
        check_kind(value, kind, f"{name}[{number}]", cure)
    return listed


def single_tasks(episodes: Any) -> Sequence[Episode]:
    """Tasks by index, from those or from one stack.

    Raises TypeError for anything else, and ValueError where there is none.
    """
    tasks = unstack(episodes) if isinstance(episodes, Episode) else episodes
    if not hasattr(tasks, "__len__") or not hasattr(tasks, "__getitem__"):
        raise TypeError(
            f"episodes must be a FewShot or one stack of tasks, not {type(tasks).__name__}; a"
            " DataLoader's data set will do"
        )
    if not len(tasks):
        raise ValueError("episodes holds no tasks; ask for at least 20")
    return tasks


def listed(names: Any, argument: str) -> list[Any]:
    """Names of layers as a list.

    Raises TypeError for a string, which would be taken letter by letter, and ValueError for none.
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
    """Both as integers of Python, None as it is.

    Raises ValueError where `draws` is no count, or `seed` does not fit a generator.
    """
    return None if draws is None else check_count(draws), check_seed(seed)


def check_count(draws: int) -> int:
    """The number of draws as an integer of Python. Raises ValueError where it is no count."""
    return check_whole(draws, "draws", 0, "it is how often one side is shuffled")


def check_seed(seed: int) -> int:
    """The seed as an integer of Python. Raises ValueError where it does not fit a generator."""
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
    """The value as an integer of Python.

    Raises ValueError where it is not a whole number from `least` on.
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
