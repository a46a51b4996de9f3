"""How good is a shared representation, by the number of tasks, their size and their diversity?

The joint estimator on tasks whose subspace is known: Du et al. 2021 (arXiv:2002.09434) bound the
excess risk of a new task by `O(dk / (n T) + k / n2)` if the predictors span the subspace evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from metalearn.algorithms.joint_representation import joint_representation, subspace_error
from metalearn.runtime.checks import sequence, whole_number
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table, Tabular, plain
from metalearn.tasks.shared_subspace import SharedSubspace

NEW_TASKS = 500  # whose risk is measured
NEW_SEED = 2**32  # added to the seed of the training tasks


@dataclass(frozen=True)
class Setting:
    """One problem of which everything is known.

    Attributes:
        inputs: d.
        rank: k.
        tasks: T, training tasks.
        shots: n, examples of each.
        new_shots: n2, examples of a new task; at least k + 2, so that its risk is finite.
        condition: condition number of the training tasks' predictors.
        noise: standard deviation.
    """

    inputs: int = 20
    rank: int = 2
    tasks: int = 80
    shots: int = 10
    new_shots: int = 10
    condition: float = 1.0
    noise: float = 0.5

    def __post_init__(self) -> None:
        if self.new_shots < self.rank + 2:
            raise ValueError(
                f"new_shots={self.new_shots} is too few: the mean risk of a regression in"
                f" {self.rank} features is finite from {self.rank + 2} examples on"
            )


@dataclass(frozen=True)
class Point:
    """The joint estimator on one problem and seed.

    Attributes:
        setting: the problem.
        seed: of tasks and noise.
        error: `||(I - E E^T) B||_F²` of the estimate E.
        law: `noise² (d - k) / n * tr((W^T W)^-1)`, the error if the predictors W were known; for a
            condition of 1 `noise² k (d - k) / (n T)`.
        risk: the mean excess risk of new tasks with the estimate.
        oracle: the same with the true subspace.
        exact: the expectation of `oracle`, `noise² k / (n2 - k - 1)`.
    """

    setting: Setting
    seed: int
    error: float
    law: float
    risk: float
    oracle: float
    exact: float


def measure(setting: Setting, seed: int = 0) -> Point:
    """Fit the joint estimator, and measure its subspace and its risk on new tasks.

    Example:
        >>> point = measure(Setting(inputs=8, tasks=40, noise=0.1))
        >>> point.error < 0.01, point.risk < 0.01
        (True, True)
    """
    make = partial(
        SharedSubspace, setting.inputs, setting.rank, noise=setting.noise, dtype=torch.float64
    )
    tasks = make(
        shots=setting.shots, tasks=setting.tasks, condition=setting.condition, seed=seed, queries=1
    )
    new = make(
        shots=setting.new_shots, tasks=NEW_TASKS, seed=seed + NEW_SEED, basis=tasks.basis, queries=1
    )
    # d - k directions lie outside the subspace.
    outside = setting.inputs - setting.rank
    variance = setting.noise**2
    basis = joint_representation(tasks, setting.rank)
    inverse = torch.linalg.inv(tasks.predictors.T @ tasks.predictors)
    return Point(
        setting=setting,
        seed=seed,
        error=subspace_error(basis, tasks.basis),
        law=variance * outside / setting.shots * float(inverse.trace()),
        risk=excess_risk(basis, new),
        oracle=excess_risk(tasks.basis, new),
        exact=variance * setting.rank / (setting.new_shots - setting.rank - 1),
    )


def excess_risk(basis: Tensor, tasks: SharedSubspace) -> float:
    """The mean squared error without the noise of regressions on a basis, over tasks.

    x has identity covariance, so the risk of a predictor E v is `|B w - E v|²`.
    """
    supports = [tasks[number].support for number in range(len(tasks))]
    inputs = torch.stack([support.inputs for support in supports]).double()  # (tasks, n2, d)
    targets = torch.stack([support.targets for support in supports]).double()  # (tasks, n2, 1)
    fitted = torch.linalg.lstsq(inputs @ basis, targets).solution  # (tasks, k, 1)
    learned = (basis @ fitted)[..., 0]  # (tasks, d)
    true = tasks.predictors @ tasks.basis.T
    return float((learned - true).square().sum(1).mean())


AXES = {
    "tasks": (10, 20, 40, 80, 160),
    "shots": (5, 10, 20, 40),
    "new_shots": (5, 10, 20, 40),
    "condition": (1.0, 2.0, 4.0, 8.0, 16.0),
}


@dataclass(frozen=True)
class ErrorLaw(Tabular):
    """The error of the shared subspace along each axis, over seeds.

    Attributes:
        points: by axis, for every value and seed.
    """

    points: dict[str, tuple[Point, ...]]

    def records(self) -> list[dict[str, Any]]:
        """A row for each value of each axis, with means over seeds."""
        rows = []
        for axis, points in self.points.items():
            values = list(dict.fromkeys(getattr(point.setting, axis) for point in points))
            for value in values:
                same = [point for point in points if getattr(point.setting, axis) == value]
                row: dict[str, Any] = {"axis": axis, "value": value}
                for name in ("error", "law", "risk", "oracle", "exact"):
                    row[name] = MeanStd.of([getattr(point, name) for point in same])
                rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The rows as JSON-able values."""
        return plain({"rows": self.records()})

    def table(self) -> Table:
        """Errors beside the law, and risks beside that of the true subspace."""
        rows = []
        for row in self.records():
            error, law = (row["error"], row["law"])
            ratio = error.mean / law.mean if law.mean else math.nan
            rows.append(
                (
                    row["axis"].replace("_", " "),
                    f"{row['value']:g}",
                    error.text(1, 4, "seed"),
                    f"{law.mean:.4f}",
                    f"{ratio:.1f}",
                    row["risk"].text(1, 4, "seed"),
                    f"{row['oracle'].mean:.4f}",
                    f"{row['exact'].mean:.4f}",
                )
            )
        return Table(COLUMNS, rows)

    def __str__(self) -> str:
        return str(self.table())


COLUMNS = (
    "varied",
    "value",
    "error of the subspace",
    "law",
    "error / law",
    "risk of a new task",
    "with the true subspace",
    "exact",
)


def error_law(
    seeds: Sequence[int] = (0, 1, 2),
    axes: dict[str, Sequence[float]] | None = None,
    base: Setting | None = None,
) -> ErrorLaw:
    """Measure the joint estimator with one setting varied at a time.

    Args:
        seeds: of the problems.
        axes: the values of each varied setting ["tasks", "shots", "new_shots" and "condition"].
        base: the settings that are not varied.

    Raises:
        ValueError: a seed repeats, there is none, or an axis is not a setting.

    Example:
        >>> law = error_law((0, 1), {"tasks": (20, 80)}, Setting(inputs=8))
        >>> few, many = [row["error"].mean for row in law.records()]
        >>> few > many
        True
    """
    numbers = [whole_number("seed", seed, 0) for seed in sequence("seeds", seeds, "(0, 1, 2)")]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={numbers} must be different, and at least one")
    points = {}
    for axis, values in (AXES if axes is None else axes).items():
        settings = varied(axis, values, base or Setting())
        points[axis] = tuple(measure(setting, seed) for setting, seed in product(settings, numbers))
    return ErrorLaw(points)


def varied(axis: str, values: Sequence[float], base: Setting) -> list[Setting]:
    """The base setting with each of the values of an axis."""
    known = vars(Setting())
    if axis not in known:
        raise ValueError(f"there is no setting {axis!r}; choose from {', '.join(known)}")
    return [Setting(**{**vars(base), axis: value}) for value in values]
