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


def _is_range(value: object) -> bool:
    """Whether it is a pair of finite numbers in order."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    if not all(isinstance(end, Real) for end in value):
        return False
    return -math.inf < value[0] <= value[1] < math.inf


class Sinusoid(Dataset[Episode]):
    """Regression tasks y = A sin(x - phase), with A, phase and x uniform in their ranges.

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
        dtype: of inputs and targets; the points are the same in any.

    Raises:
        ValueError: for a range that is no pair of finite numbers in order.
        TypeError: for a dtype that is not a floating-point one.

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
        self.seed = seeded(seed)
        self.amplitude = amplitude
        self.phase = phase
        self.inputs = inputs
        self.dtype = dtype
        for name in ("amplitude", "phase", "inputs"):
            value = getattr(self, name)
            if not _is_range(value):
                raise ValueError(f"{name}={value!r} is not a range (low, high) of finite numbers")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(
                f"dtype={dtype!r} must be a floating-point dtype of torch, such as torch.float32"
            )

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        rng = philox(self.seed, position(index, self.tasks))
        # The order of the draws is part of the task: amplitude, phase, then x.
        amplitude = rng.uniform(*self.amplitude)
        phase = rng.uniform(*self.phase)
        x = torch.from_numpy(rng.uniform(*self.inputs, (self.shots + self.queries, 1)))
        y = amplitude * torch.sin(x - phase)
        x, y = (values.to(self.dtype) for values in (x, y))  # after the sine, in double precision
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
