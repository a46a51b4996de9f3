"""The result of learning tasks one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from metalearn.network.layers import is_inside
from metalearn.runtime.tables import Table, Tabular, plain
from transfer.finetuning.curve import Curve

Weights: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """One task of a sequence, learned.

    Attributes:
        weights: the network after it (parameters and buffers), with the head of this task.
        heads: for each task so far the tensors of its head, as they are after this one. With one
            head for all tasks, that head.
        accuracy: on the test images of every task after it; NaN where a task has no head yet.
        curve: of its training.
        course: {step: accuracy on every task so far}, along its training.
    """

    weights: Weights
    heads: tuple[Weights, ...]
    accuracy: tuple[float, ...]
    curve: Curve
    course: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, repr=False)
class TaskSequence(Tabular):
    """Tasks learned one after another by one network; prints as its accuracy matrix.

    Attributes:
        stages: the tasks, in order.
        head: the path of the network's head.
        shared: whether all tasks have one head.
        seed: of the network and of all trainings.
        memory: what kept earlier tasks, in words.
    """

    stages: tuple[Stage, ...]
    head: str
    shared: bool
    seed: int
    memory: str = "none"

    @property
    def accuracy(self) -> tuple[tuple[float, ...], ...]:
        """`accuracy[i][j]`: on the test images of task j after task i."""
        return tuple(stage.accuracy for stage in self.stages)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The network after each task, with the head of that task."""
        return tuple(stage.weights for stage in self.stages)

    def state(self, after: int, task: int | None = None) -> dict[str, Tensor]:
        """The network after a task, with the head of the same task or of an earlier one.

        Args:
            after: the task that was learned last.
            task: whose head; by default that of `after`.

        Raises:
            ValueError: the task has no head after `after`.
        """
        stage = self.stages[after]
        wanted = after if task is None else task
        if self.shared:
            return dict(stage.weights)
        if not 0 <= wanted < len(stage.heads):
            raise ValueError(
                f"task {wanted} has no head after task {after}; heads there are of tasks 0 to"
                f" {len(stage.heads) - 1}"
            )
        return {**stage.weights, **stage.heads[wanted]}

    def forgetting(self, task: int = 0) -> float:
        """`R[j, j] - R[m-1, j]`: what the accuracy on a task fell by until the end."""
        return self.accuracy[task][task] - self.accuracy[-1][task]

    @property
    def backward_transfer(self) -> float:
        """Minus the mean forgetting over all tasks but the last; NaN for one task."""
        earlier = len(self.stages) - 1
        if not earlier:
            return math.nan
        return -sum(self.forgetting(task) for task in range(earlier)) / earlier

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of tasks with an accuracy."""
        rows = []
        for after, accuracies in enumerate(self.accuracy):
            for task, accuracy in enumerate(accuracies):
                if not math.isnan(accuracy):
                    rows.append({"after": after, "task": task, "accuracy": accuracy})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values, without the weights."""
        return plain(
            {
                "seed": self.seed,
                "memory": self.memory,
                "shared": self.shared,
                "accuracy": self.accuracy,
                "backward_transfer": self.backward_transfer,
                "courses": [stage.course for stage in self.stages],
                "curves": [stage.curve.to_dict() for stage in self.stages],
            }
        )

    def table(self) -> Table:
        """The accuracy matrix in percent."""
        columns = ("after", *(f"task {task}" for task in range(len(self.stages))))
        rows = []
        for after, accuracies in enumerate(self.accuracy):
            cells = ["" if math.isnan(value) else f"{100 * value:.1f}" for value in accuracies]
            rows.append((f"task {after}", *cells))
        title = f"accuracy on each task, % (memory: {self.memory}, seed {self.seed})"
        return Table(columns, rows, title=title)

    def __str__(self) -> str:
        return str(self.table())


def head_tensors(weights: Weights, head: str) -> dict[str, Tensor]:
    """The tensors of the head."""
    return {name: tensor for name, tensor in weights.items() if is_inside(name, head)}


def separate_heads(
    state: Weights, head: str, earlier: tuple[Weights, ...], *, shared: bool
) -> tuple[dict[str, Tensor], tuple[Weights, ...]]:
    """A state dict with the current head alone, and the heads of all tasks so far.

    Args:
        state: of a network, or of one with `TaskHeads`.
        head: the path of the head.
        earlier: the heads of earlier tasks, if the state does not hold them.
        shared: whether all tasks have one head.
    """
    prefix = f"{head}.heads."
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    inside = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if shared:
        return weights, (head_tensors(weights, head),)
    if not inside:
        return weights, (*earlier, head_tensors(weights, head))
    heads: dict[int, dict[str, Tensor]] = {}
    for name, tensor in inside.items():
        # "head.heads.0.weight" -> 0, "head.weight"
        task, _, rest = name.removeprefix(prefix).partition(".")
        heads.setdefault(int(task), {})[f"{head}.{rest}"] = tensor
    ordered = tuple(heads[task] for task in sorted(heads))
    return {**weights, **ordered[-1]}, ordered
