"""Sinusoid regression, the toy problem of MAML (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch.utils.data import Dataset

from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .keyed_random import philox, position, seeded


def _is_range(given: object) -> bool:
    """Whether it is a pair of finite numbers in order."""
    if (
        not isinstance(given, tuple | list)
        or len(given) != 2
        or not all(isinstance(end, Real) for end in given)
    ):
        return False
    return -math.inf < given[0] <= given[1] < math.inf


class Sinusoid(Dataset[Episode]):
    """Tasks of regressing y = A sin(x - phase) from a few points, A, phase and x uniform in the
    given ranges.

    `[i]` is a single-task `Episode`: inputs and targets (shots, 1) and (queries, 1). It depends on
    `(seed, i)` alone.

    Args:
        shots: support points per task, the paper's K.
        queries: query points per task.
        tasks: the length; a task past it raises IndexError.
        seed: names the stream of tasks, 0 to 2**64 - 1.
        amplitude: the range of A.
        phase: the range of the phase in radians.
        inputs: the range of x.
        dtype: of inputs and targets; the same points in any.

    Example:
        >>> tasks = Sinusoid(shots=5, queries=10, tasks=100)
        >>> tasks[3].query.targets.shape
        torch.Size([10, 1])
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        tasks: int = 1000,
        seed: int = 0,
        *,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        inputs: tuple[float, float] = (-5.0, 5.0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shots, self.queries, self.tasks = positive(shots=shots, queries=queries, tasks=tasks)
        self.seed, self.dtype = seeded(seed), dtype
        self.amplitude, self.phase, self.inputs = amplitude, phase, inputs
        for name, given in (("amplitude", amplitude), ("phase", phase), ("inputs", inputs)):
            if not _is_range(given):
                raise ValueError(f"{name}={given!r} is not a range (low, high) of finite numbers")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(
                f"dtype={dtype!r} must be a floating-point dtype of torch, such as torch.float32"
            )

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        rng = philox(self.seed, position(index, self.tasks))
        amplitude, phase = rng.uniform(*self.amplitude), rng.uniform(*self.phase)
        x = torch.from_numpy(rng.uniform(*self.inputs, (self.shots + self.queries, 1)))
        x, y = x.to(self.dtype), (amplitude * torch.sin(x - phase)).to(self.dtype)
        return Episode(
            Examples(x[: self.shots], y[: self.shots]), Examples(x[self.shots :], y[self.shots :])
        )

    def settings(self) -> Record:
        """A JSON-able record of the tasks, for result lines."""
        record = {name: getattr(self, name) for name in ("shots", "queries", "tasks", "seed")}
        return {
            **record,
            "data": {
                "source": "sinusoid",
                "amplitude": self.amplitude,
                "phase": self.phase,
                "inputs": self.inputs,
            },
        }
