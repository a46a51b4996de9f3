"""Random numbers that depend on a seed and a task's number alone."""

from __future__ import annotations

import operator
import threading

import numpy as np

from metalearn.runtime.checks import whole_number


def seeded(seed: int) -> int:
    """The seed as an integer.

    Raises ValueError where it does not fit a word of Philox's key, TypeError where it is no whole
    number.
    """
    if not 0 <= whole_number("seed", seed, least=None) < 2**64:
        raise ValueError(f"seed={seed} must lie in 0 to 2**64 - 1")
    return operator.index(seed)


def position(index: int, tasks: int) -> int:
    """An index, negative ones counted from the end, as a position.

    Raises IndexError past the last task.
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
    """NumPy's Philox generator keyed by (seed, index), at its start; each thread has one, so use it
    up before the next call.

    Example:
        >>> bool(philox(3, 4).random() == np.random.Generator(np.random.Philox(key=[3, 4])).random())
        True
    """
    rng = getattr(_threads, "generator", None)
    if rng is None:
        rng = _threads.generator = np.random.Generator(np.random.Philox(key=0))
    # A new Philox takes five times as long: it asks the system for entropy that the key then
    # replaces.
    key = np.array((seed, index), dtype=np.uint64)
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return rng


_threads = threading.local()


_ZEROS = np.zeros(4, dtype=np.uint64)
