"""Random numbers that depend on a seed and a task's number alone."""

from __future__ import annotations

import operator
import threading

import numpy as np

from metalearn.runtime.checks import whole_number


def seeded(seed: int) -> int:
    """The seed as an integer.

    Raises:
        ValueError: if it does not fit a word of Philox's key.
        TypeError: if it is no whole number.
    """
    if not 0 <= whole_number("seed", seed, least=None) < 2**64:
        raise ValueError(f"seed={seed} must lie in 0 to 2**64 - 1")
    return operator.index(seed)


def position(index: int, tasks: int) -> int:
    """An index as a position from 0; negative ones count from the end.

    Raises:
        IndexError: past the last task.
        TypeError: if it is no whole number.

    Example:
        >>> position(-1, tasks=100)
        99
    """
    if not hasattr(index, "__index__"):
        raise TypeError(
            f"task {index!r} is not a whole number; take one task by its number, or several with"
            " stack([0, 1, 2])"
        )
    if not -tasks <= operator.index(index) < tasks:
        raise IndexError(f"task {index} does not exist: there are {tasks}, 0 to {tasks - 1}")
    return operator.index(index) % tasks


def philox(seed: int, index: int) -> np.random.Generator:
    """NumPy's Philox generator keyed by (seed, index), at its start.

    Each thread has one generator: finish with it before the next call.

    Example:
        >>> new = np.random.Generator(np.random.Philox(key=[3, 4]))
        >>> bool(philox(3, 4).random() == new.random())
        True
    """
    # Threads draw tasks at the same time, and a generator has one state.
    rng = getattr(_threads, "generator", None)
    if rng is None:
        rng = _threads.generator = np.random.Generator(np.random.Philox(key=0))
    # Resetting the state is five times as fast as a new Philox, which asks the system for entropy
    # that the key then replaces.
    key = np.array((seed, index), dtype=np.uint64)
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": 4,  # the buffer of 4 words is used up
        "has_uint32": 0,
        "uinteger": 0,
    }
    return rng


_threads = threading.local()
_ZEROS = np.zeros(4, dtype=np.uint64)
