"""Transforms that make tasks of a data set.

Each takes the examples of a task, or None for the whole data set, and returns those it selects.
"""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any

from metalearn.compat.learn2learn._missing import nearest

from .meta_dataset import plain_label


class DataDescription:
    """One example of a task: its index in the data set, and the transforms to apply to that."""

    __slots__ = ("index", "transforms")

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []


Task = list[DataDescription]


class TaskTransform:
    """The base of the transforms: a data set, and a task of all its examples to start from.

    Args:
        dataset: a `MetaDataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def new_task(self) -> Task:
        """The task that a transform starts from if it is the first one."""
        return [DataDescription(i) for i in range(len(self.dataset))]

    def __call__(self, task_description: Task | None) -> Task:
        """Apply the transform; None stands for all examples."""
        if task_description is None:
            task_description = self.new_task()
        return self.apply(task_description)

    def apply(self, task: Task) -> Task:
        """Select examples and put them in order, or add transforms to them."""
        raise NotImplementedError

    def label(self, described: DataDescription) -> Any:
        """The label of an example in the data set."""
        return self.dataset.indices_to_labels[described.index]


class LoadData(TaskTransform):
    """Loads every example from the data set."""

    def apply(self, task: Task) -> Task:
        """Add the loading to every example."""
        for described in task:
            described.transforms.append(self.dataset.__getitem__)
        return task


class FilterLabels(TaskTransform):
    """Selects the examples of the given labels."""

    def __init__(self, dataset: Any, labels: Iterable[Any]) -> None:
        super().__init__(dataset)
        self.labels = list(labels)
        self._selected = set(self.labels)

    def apply(self, task: Task) -> Task:
        """The examples of the given labels."""
        return [described for described in task if self.label(described) in self._selected]


class NWays(TaskTransform):
    """Selects the examples of `n` labels, drawn at random.

    Raises ValueError if there are fewer.
    """

    def __init__(self, dataset: Any, n: int = 2) -> None:
        super().__init__(dataset)
        self.n = n

    def new_task(self) -> Task:
        """The examples of `n` labels of the data set."""
        task: Task = []
        for label in _draw(self.dataset.labels, self.n):
            task += map(DataDescription, self.dataset.labels_to_indices[label])
        return task

    def __call__(self, task_description: Task | None) -> Task:
        """Apply the transform; None stands for all examples."""
        return self.new_task() if task_description is None else self.apply(task_description)

    def apply(self, task: Task) -> Task:
        """The examples of `n` labels of the task."""
        labels = set(_draw(list({self.label(described) for described in task}), self.n))
        return [described for described in task if self.label(described) in labels]


class KShots(TaskTransform):
    """Selects `k` examples of every label, drawn at random, label by label.

    Raises ValueError, naming the label, if it has fewer.
    """

    def __init__(self, dataset: Any, k: int = 1, replacement: bool = False) -> None:
        super().__init__(dataset)
        self.k = k
        self.replacement = replacement

    def apply(self, task: Task) -> Task:
        """`k` examples of every label."""
        # Labels in the order in which they appear, as in learn2learn.
        by_label: dict[Any, Task] = {}
        for described in task:
            by_label.setdefault(self.label(described), []).append(described)
        selected: Task = []
        for label, examples in by_label.items():
            selected += self.of(label, examples)
        return selected

    def of(self, label: Any, examples: list[Any]) -> list[Any]:
        """Draw `k` of a label's examples."""
        if self.replacement:
            # An example that is chosen twice must have a list of transforms for each.
            return [copy.deepcopy(chosen) for chosen in random.choices(examples, k=self.k)]
        if len(examples) < self.k:
            raise ValueError(
                f"label {label} has {len(examples)} examples but k={self.k}; ask for fewer, or for"
                " replacement=True"
            )
        return random.sample(examples, k=self.k)


class FusedNWaysKShots(TaskTransform):
    """`FilterLabels`, `NWays` and `KShots` in one, without a pass through the whole data set."""

    def __init__(
        self,
        dataset: Any,
        n: int = 2,
        k: int = 1,
        replacement: bool = False,
        filter_labels: list[Any] | None = None,
    ) -> None:
        super().__init__(dataset)
        self.n = n
        self.k = k
        self.replacement = replacement
        self.filter_labels = dataset.labels if filter_labels is None else filter_labels
        self.filter = FilterLabels(dataset, self.filter_labels)
        self.nways = NWays(dataset, n)
        self.kshots = KShots(dataset, k, replacement)

    def new_task(self) -> Task:
        """`k` examples of each of `n` labels."""
        task: Task = []
        for label in _draw(self.filter_labels, self.n):
            task += map(DataDescription, self._indices(label))
        return task

    def __call__(self, task_description: Task | None) -> Task:
        """Apply the transforms; None stands for all examples."""
        if task_description is None:
            return self.new_task()
        return self.kshots(self.nways(self.filter(task_description)))

    def _indices(self, label: Any) -> list[int]:
        """`k` examples of a label, by their indices."""
        indices = self.dataset.labels_to_indices[label]
        if self.replacement:
            # One draw at a time, as in learn2learn, for the same examples from the same seed.
            return [random.choice(indices) for _ in range(self.k)]
        return self.kshots.of(label, indices)


class RemapLabels(TaskTransform):
    """Numbers the labels of the task 0, 1, ..., in random order unless `shuffle` is off."""

    def __init__(self, dataset: Any, shuffle: bool = True) -> None:
        super().__init__(dataset)
        self.shuffle = shuffle

    def apply(self, task: Task) -> Task:
        """Add the change of the label to every example."""
        labels = list({self.label(described) for described in task})
        if self.shuffle:
            random.shuffle(labels)
        numbers = {label: number for number, label in enumerate(labels)}

        def remap(example: Any) -> list[Any]:
            inputs, label, *more = example
            return [inputs, numbers[plain_label(label)], *more]

        for described in task:
            described.transforms.append(remap)
        return task


class ConsecutiveLabels(TaskTransform):
    """Sorts the examples by their labels in the data set, so those of one label are adjacent."""

    def apply(self, task: Task) -> Task:
        """The examples in the order of their labels."""
        return sorted(task, key=self.label)


def _draw(labels: list[Any], n: int) -> list[Any]:
    """Draw `n` of the labels."""
    if n > len(labels):
        raise ValueError(f"there are {len(labels)} labels but n={n}; ask for at most {len(labels)}")
    return random.sample(labels, k=n)


__getattr__ = nearest(
    __name__,
    [
        "ConsecutiveLabels",
        "FilterLabels",
        "FusedNWaysKShots",
        "KShots",
        "LoadData",
        "NWays",
        "RemapLabels",
        "TaskTransform",
    ],
)
