"""Random numbers inside a task, repeatable by the generators' state and the task's number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from .solver import Solver

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class TaskRandomness:
    """Gives every task its own random numbers from the global generators of torch, numpy, Python.

    The draws of a task depend on the state of torch's generator at the start and on the number of
    the task, not on the tasks before it. `finish` puts the generators back to the start. If a task
    drew, it then advances them, and the next step draws other numbers.

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
        """Seed the global generators for the task of this number."""
        # seed = hash(state at the start, number of the task)
        text = self.start[0].numpy().tobytes() + number.to_bytes(8, "little")
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        torch.default_generator.manual_seed(seed)
        if self.cuda is not None:
            with torch.cuda.device(self.cuda):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (a network may draw from the global generator)
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
        # One draw is enough: the next seeds are hashes of another state.
        if self.drawn:
            torch.rand(())
            random.random()
            np.random.random()  # noqa: NPY002

    def _states(self) -> tuple[Any, ...]:
        cuda = None
        if self.cuda is not None:
            cuda = torch.cuda.get_rng_state(self.cuda)
        return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()  # noqa: NPY002


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    torch_a, cuda_a, python_a, numpy_a = a
    torch_b, cuda_b, python_b, numpy_b = b
    if not torch.equal(torch_a, torch_b) or python_a != python_b:
        return False
    if cuda_a is not None and not torch.equal(cuda_a, cuda_b):
        return False
    # numpy's state is (name, keys, position, whether a Gaussian is kept, that Gaussian).
    return bool(np.array_equal(numpy_a[1], numpy_b[1])) and numpy_a[2:] == numpy_b[2:]


def random_part(learner: Solver) -> str:
    """What in the model draws random numbers, for a message; "" if nothing is known to."""
    for name, module in learner.model.named_modules():
        if _is_random(module):
            return f"{name} ({type(module).__name__})"
        for attribute, value in vars(module).items():
            if isinstance(value, _GENERATORS):
                path = f"{name}.{attribute}" if name else attribute
                return f"the generator {path}"
    # A call such as F.dropout shows only when the model runs.
    if learner.known.drawing == training_modes(learner.model):
        return "the model"  # as it did the last time
    return ""


def training_modes(model: nn.Module) -> tuple[bool, ...]:
    """Whether each module is in training mode, which decides what it draws."""
    return tuple(module.training for module in model.modules())


def refuse_draws(way: str, part: str) -> NoReturn:
    """Raise ValueError for tasks that run in this way while this part of the model draws."""
    raise ValueError(
        f"{part} draws random numbers, so {way} tasks would not repeat the numbers of a loop; use"
        " execution='loop', or switch it off with model.eval()"
    )


def _is_random(module: nn.Module) -> bool:
    """Whether a module draws random numbers in its present mode, by its class."""
    if not module.training:
        return False
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    drops = isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU)
    # Stochastic depth is torchvision's StochasticDepth and timm's DropPath.
    if drops or type(module).__name__ in ("StochasticDepth", "DropPath"):
        return getattr(module, "p", getattr(module, "drop_prob", 1)) != 0
    return False
