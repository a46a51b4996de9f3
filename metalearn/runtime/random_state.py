"""The state of every random generator, as plain values that a file can hold."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """A context that leaves the global generators as they were before it.

    Args:
        device: whose generator is left as it was too, if it is a CUDA device.

    Example:
        >>> with preserved(torch.device("cpu")):
        ...     first = torch.rand(1)
        >>> bool(first == torch.rand(1))
        True
    """
    of_torch = torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002
    of_python = random.getstate()
    of_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        if of_cuda is not None:
            torch.cuda.set_rng_state(of_cuda, device)


@contextmanager
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
    with _one_thread, preserved(torch.device("cpu")):
        # Not torch.manual_seed, which seeds every CUDA device too.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        yield


_one_thread = threading.RLock()
