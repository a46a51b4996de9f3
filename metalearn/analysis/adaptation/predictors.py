"""The predictors of adapted tasks: do their norms stay bounded, and do they span all directions?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.algorithms.nil import NIL
from metalearn.algorithms.protonet import ProtoNet
from metalearn.episodes import Examples, unstack
from metalearn.evaluation import Tasks, check_learner, check_tasks, load
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.checks import whole_number
from metalearn.runtime.tables import Table, Tabular, plain


@dataclass(frozen=True)
class Predictors(Tabular):
    """Norm and condition number of the predictors of several tasks.

    Attributes:
        kind: "head" (adapted heads) or "prototypes".
        tasks: T, how many tasks.
        rows: predictors of a task; 1 for regression of one output.
        features: the size of a predictor.
        norm: `||W||_F / sqrt(T)`, W the predictors of all tasks in rows.
        condition: the largest singular value of W over the smallest; infinity if W does not have
            full rank.
        singular_values: of W, in falling order.
    """

    kind: str
    tasks: int
    rows: int
    features: int
    norm: float
    condition: float
    singular_values: tuple[float, ...]

    def records(self) -> list[dict[str, Any]]:
        """One row, without the singular values."""
        names = ("kind", "tasks", "rows", "features", "norm", "condition")
        return [{name: getattr(self, name) for name in names}]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values; an infinite condition number is None."""
        return plain({**self.records()[0], "singular_values": self.singular_values})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Predictors:
        """What `to_dict` returned."""
        condition = record["condition"]
        return cls(
            **{
                **record,
                "condition": math.inf if condition is None else condition,
                "singular_values": tuple(record["singular_values"]),
            }
        )

    def table(self) -> Table:
        """The norm and the condition number."""
        return Table(
            ("predictors", "tasks", "norm", "condition number"),
            [(self.kind, f"{self.tasks}", f"{self.norm:.3g}", f"{self.condition:.3g}")],
        )

    def __str__(self) -> str:
        return str(self.table())


def predictors(learner: Learner, episodes: Tasks, tasks: int | None = None) -> Predictors:
    """Norm and condition number of the adapted heads or the prototypes of tasks.

    Theory asks that both stay bounded while tasks are added (Du et al. 2021, arXiv:2002.09434;
    Bouniot et al. 2022, arXiv:2010.01992). Of classifiers the mean over ways is subtracted, because
    softmax ignores it; the condition number is then over the remaining directions.

    Args:
        learner: one that adapts its head (MAML, ANIL, ...) or ProtoNet. A head that the inner loop
            does not move is measured as it is.
        episodes: tasks; their support sets are adapted to.
        tasks: how many of them, from the first [all].

    Raises:
        TypeError: the learner has neither an adapted linear head nor prototypes.
        ValueError: there are no tasks, or not so many; a predictor is not finite.

    Example:
        >>> from metalearn import ProtoNet
        >>> from metalearn.data.glyphs import glyphs
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot
        >>> tasks = FewShot(glyphs("test", size=16), ways=5, shots=1, queries=1, tasks=20)
        >>> learner = ProtoNet(Conv4(5, hidden=8, size=16), normalised=True)
        >>> result = predictors(learner, tasks)
        >>> result.kind, result.tasks, result.norm <= 5**0.5
        ('prototypes', 20, True)
    """
    check_learner(learner)
    check_tasks("tasks", episodes)
    count = len(episodes) if tasks is None else whole_number("tasks", tasks)
    if not 1 <= count <= len(episodes):
        raise ValueError(f"tasks={count}; give a number from 1 to {len(episodes)}, those there are")
    matrices = []
    with torch.no_grad(), evaluation_mode([learner.model]):
        for index in range(count):
            stacked = load(episodes, [index], learner)
            if not index:
                learner.prepare(stacked)
            matrices.append(_predictor(learner, unstack(stacked)[0].support))
    return measured("prototypes" if isinstance(learner, ProtoNet) else "head", matrices)


def measured(kind: str, matrices: Sequence[Tensor]) -> Predictors:
    """The measures of given predictors.

    Args:
        kind: what they are called.
        matrices: the predictors (rows, features) of every task.

    Example:
        >>> result = measured("head", [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
        >>> result.condition, round(result.norm**2, 6)
        (3.0, 5.0)
    """
    weights = torch.stack([matrix.detach().double().cpu() for matrix in matrices])
    tasks, rows, features = weights.shape
    if not weights.isfinite().all():
        bad = int((~weights.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"the predictor of task {bad} is not finite; lower the inner rate")
    directions = rows
    if rows > 1:
        weights = weights - weights.mean(1, keepdim=True)
        directions = rows - 1  # the mean over ways is gone
    stacked = weights.flatten(0, 1)  # (tasks * rows, features)
    values = torch.linalg.svdvals(stacked)[: min(tasks * directions, features)]
    rounding = float(values[0]) * max(stacked.shape) * torch.finfo(torch.float32).eps
    smallest = float(values[-1])
    condition = math.inf
    if smallest > rounding:
        condition = float(values[0]) / smallest
    return Predictors(
        kind=kind,
        tasks=tasks,
        rows=rows,
        features=features,
        norm=float(stacked.norm()) / math.sqrt(tasks),
        condition=condition,
        singular_values=tuple(values.tolist()),
    )


def _predictor(learner: Learner, support: Examples) -> Tensor:
    """The predictor (rows, features) of one task."""
    adapted = learner.adapt(support)
    if isinstance(learner, ProtoNet) and adapted.support is not None:
        return learner.prototypes(adapted.support, int(support.targets.max()) + 1)
    weight = adapted.weights.get(f"{learner.head}.weight")
    if isinstance(learner, NIL) or weight is None or weight.ndim < 2:
        raise TypeError(
            f"{type(learner).__name__} has neither an adapted linear head nor prototypes; measure"
            " the predictors of MAML, ANIL, BOIL, MetaSGD, Reptile or ProtoNet"
        )
    return weight.flatten(1)
