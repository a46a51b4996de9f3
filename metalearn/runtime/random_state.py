"""The state of every random generator, as plain values that a file can hold."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch

from metalearn.runtime.files import Record


def generators(device: torch.device) -> Record:
    """The states of the global generators of torch, numpy, Python and, on CUDA, of `device`."""
    # A run depends on numpy's legacy global generator.
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, state, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [kind, np.array(keys).tolist(), *rest],
        "python": [version, list(state), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return states


def set_generators(states: Record, device: torch.device) -> None:
    """Put the global generators into the states that `generators` returned."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch's CPU, numpy and Python, and put their states back.

    One thread at a time is inside, since the generators belong to the process.

    Args:
        seed: 0 to 2**32 - 1.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(torch.rand(2), first)
        True
    """
    with _one_thread:
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            # Not torch.manual_seed, which seeds every CUDA device too.
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            random.setstate(states[2])


_one_thread = threading.RLock()
