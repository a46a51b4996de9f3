"""Linear regression tasks that share a subspace: the setting of the theory of meta-learning."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

from .keyed_random import philox, position, seeded

# Keys of the draws that are not of one task; tasks are counted from 0.
BASIS, PREDICTORS = (2**64 - 1, 2**64 - 2)


class SharedSubspace(Dataset[Episode]):
    """Regression tasks `y = w_t^T B^T x + noise` with one subspace B for all tasks.

    x is Gaussian with identity covariance, B (inputs, rank) has orthonormal columns, and
    W = [w_1 ... w_T] (tasks, rank) has exactly the condition number that is requested and a mean
    squared length of `rank` (Du et al. 2021, arXiv:2002.09434; Tripuraneni et al. 2021,
    arXiv:2002.11684). `[i]` is a single-task `Episode`: inputs (shots, inputs), targets (shots, 1).
    It depends on the arguments and i alone.

    Args:
        inputs: d, features of an example.
        rank: k, dimensions of the subspace.
        shots: support examples per task.
        queries: query examples per task.
        tasks: T, the length; a task past it raises IndexError.
        condition: the largest singular value of W over the smallest; those between lie on a
            geometric sequence.
        noise: the standard deviation of the noise, in support and queries.
        seed: names the stream of tasks, 0 to 2**64 - 1.
        basis: B, to share it with other tasks, such as those of the test (`train.basis`); drawn by
            the seed without it.
        dtype: of inputs and targets.

    Attributes:
        basis: B (inputs, rank), float64.
        predictors: W (tasks, rank), float64.

    Raises:
        ValueError: a rank above the inputs or the tasks, a condition below 1 or, for a rank of 1,
            other than 1; a negative noise; a basis of another shape or without orthonormal columns.
        TypeError: a number that is not whole, or a dtype that is not a floating-point one.

    Example:
        >>> tasks = SharedSubspace(inputs=20, rank=2, shots=10, queries=50, tasks=100, condition=4)
        >>> tasks[3].support.inputs.shape, tasks.basis.shape
        (torch.Size([10, 20]), torch.Size([20, 2]))
        >>> round(float(torch.linalg.cond(tasks.predictors)), 6)
        4.0
    """

    draws_by_index = True  # a task depends on the settings and its index alone

    def __init__(
        self,
        inputs: int = 20,
        rank: int = 2,
        shots: int = 10,
        queries: int = 50,
        tasks: int = 1000,
        condition: float = 1.0,
        noise: float = 0.5,
        seed: int = 0,
        *,
        basis: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.inputs, self.rank, self.shots = positive(inputs=inputs, rank=rank, shots=shots)
        self.queries, self.tasks = positive(queries=queries, tasks=tasks)
        self.condition = _number("condition", condition, 1)
        self.noise = _number("noise", noise, 0)
        self.seed = seeded(seed)
        self.dtype = dtype
        self._check()
        if basis is None:
            basis = _orthonormal(philox(self.seed, BASIS), self.inputs, self.rank)
        self.basis = _checked_basis(basis, self.inputs, self.rank)
        self.predictors = self._draw_predictors()

    def _check(self) -> None:
        if self.rank > self.inputs:
            raise ValueError(
                f"rank={self.rank} is above inputs={self.inputs}: a subspace has at most as many"
                f" dimensions as its space; give rank={self.inputs} or less"
            )
        if self.tasks < self.rank:
            raise ValueError(
                f"tasks={self.tasks} is below rank={self.rank}: so few predictors do not span the"
                f" subspace; give at least {self.rank} tasks"
            )
        if self.rank == 1 and self.condition != 1:
            raise ValueError(
                f"condition={self.condition:g} needs a rank of at least 2: predictors of one"
                " dimension have condition 1"
            )
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise TypeError(
                f"dtype={self.dtype!r} must be a floating-point dtype of torch, such as"
                " torch.float32"
            )

    def _draw_predictors(self) -> Tensor:
        """W (tasks, rank) of the requested condition number, with ||W||_F² = tasks * rank."""
        rng = philox(self.seed, PREDICTORS)
        directions = _orthonormal(rng, self.tasks, self.rank)  # (tasks, rank)
        rotation = _orthonormal(rng, self.rank, self.rank)
        # From condition down to 1, then scaled; one value for a rank of 1.
        scales = self.condition ** torch.linspace(1, 0, self.rank, dtype=torch.float64)
        scales = scales * math.sqrt(self.tasks * self.rank) / scales.norm()
        return (directions * scales) @ rotation

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        number = position(index, self.tasks)
        rng = philox(self.seed, number)
        # The order of the draws is part of the task: x, then the noise.
        x = torch.from_numpy(rng.standard_normal((self.shots + self.queries, self.inputs)))
        noise = torch.from_numpy(rng.standard_normal((len(x), 1)))
        y = x @ (self.basis @ self.predictors[number]).unsqueeze(1) + self.noise * noise
        x, y = (values.to(self.dtype) for values in (x, y))
        return Episode(
            Examples(x[: self.shots], y[: self.shots]), Examples(x[self.shots :], y[self.shots :])
        )

    def settings(self) -> Record:
        """A JSON-able record of the tasks, for result lines."""
        names = ("shots", "queries", "tasks", "seed")
        record = {name: getattr(self, name) for name in names}
        data = {name: getattr(self, name) for name in ("inputs", "rank", "condition", "noise")}
        # The basis may be another's; its first entries tell two apart.
        first = [round(value, 6) for value in self.basis[:, 0].tolist()]
        return {**record, "data": {"source": "shared subspace", **data, "basis": first}}


def _number(name: str, value: float, least: float) -> float:
    """Check that `value` is a finite number from `least`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value < math.inf:
        raise ValueError(f"{name}={value!r}; give a finite number from {least}")
    return float(value)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """Orthonormal columns (rows, columns), uniform among all."""
    drawn = torch.from_numpy(rng.standard_normal((rows, columns)))
    basis, triangle = torch.linalg.qr(drawn)
    return basis * triangle.diagonal().sign()  # the signs make it uniform


def _checked_basis(basis: Tensor, inputs: int, rank: int) -> Tensor:
    """The basis in double precision, if its columns are orthonormal."""
    shape = tuple(basis.shape) if isinstance(basis, Tensor) else type(basis).__name__
    if shape != (inputs, rank):
        raise ValueError(
            f"basis is {shape}; give a tensor ({inputs}, {rank}), such as the basis of other tasks"
        )
    basis = basis.detach().double()
    error = float((basis.T @ basis - torch.eye(rank, dtype=torch.float64)).abs().max())
    if not error < 1e-4:
        raise ValueError(
            f"the columns of basis are not orthonormal (off by {error:.2g}); pass"
            " torch.linalg.qr(basis)[0]"
        )
    return basis
