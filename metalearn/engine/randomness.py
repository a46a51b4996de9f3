"""Random draws inside a task: repeatable by the state of the generators when the tasks start and
the number of the task.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class TaskRandomness:
    """Gives every task random numbers of its own from the global generators of torch, numpy and
    Python.

    What a task draws depends on the state of torch's generator at the start and on the number of
    the task, not on the tasks before it. `finish` puts the generators back to the start. If a task
    drew from one, it then moves them on, so that the next step draws anew.

    Args:
        device: where the tasks run; the generator of a CUDA device is covered too.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> randomness = TaskRandomness(torch.device("cpu"))
        >>> with randomness.task(0):
        ...     first = torch.rand(2)
        >>> with randomness.task(0):
        ...     again = torch.rand(2)
        >>> randomness.finish()
        >>> torch.equal(first, again), randomness.drawn
        (True, True)
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None
        self.start = self._states()
        self.drawn = False

    @contextmanager
    def task(self, number: int) -> Iterator[None]:
        """While it is on, the global generators are those of the task of this number."""
        text = self.start[0].numpy().tobytes() + number.to_bytes(8, "little")
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        torch.default_generator.manual_seed(seed)
        if self.cuda is not None:
            with torch.cuda.device(self.cuda):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global generator is the one that a network may draw from)
        seeded = self._states()
        try:
            yield
        finally:
            self.drawn = self.drawn or not _same(seeded, self._states())

    def changed(self) -> bool:
        """Whether a generator is no longer as it was at the start."""
        return not _same(self.start, self._states())

    def finish(self) -> None:
        """Put the generators back to the start, or one draw beyond it if a task drew."""
        cpu, cuda, python, numpy = self.start
        torch.set_rng_state(cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(cuda, self.cuda)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if self.drawn:
            torch.rand(())
            random.random()
            np.random.random()  # noqa: NPY002

    def _states(self) -> tuple[Any, ...]:
        cuda = None if self.cuda is None else torch.cuda.get_rng_state(self.cuda)
        return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()  # noqa: NPY002


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    (torch_a, cuda_a, python_a, numpy_a), (torch_b, cuda_b, python_b, numpy_b) = a, b
    if not torch.equal(torch_a, torch_b) or python_a != python_b:
        return False
    if cuda_a is not None and not torch.equal(cuda_a, cuda_b):
        return False
    # numpy's state is (name, keys, position, whether a Gaussian is kept, that Gaussian).
    return bool(np.array_equal(numpy_a[1], numpy_b[1])) and numpy_a[2:] == numpy_b[2:]
