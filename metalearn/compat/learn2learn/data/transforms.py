"""What turns a data set into tasks: each transform takes the examples of a task, or None for all of
them, and returns those it leaves.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any

from metalearn.compat.learn2learn._missing import nearest


class DataDescription:
    """One example of a task: its index in the data set, and the transforms that make it from the
    index.
    """

    __slots__ = ("index", "transforms")

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []


Task = list[DataDescription]


class TaskTransform:
    """What the transforms share: the data set, and a task of all its examples to start from."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def new_task(self) -> Task:
        """The task that a transform starts from where it is the first one."""
        return [DataDescription(i) for i in range(len(self.dataset))]

    def __call__(self, task_description: Task | None) -> Task:
        return self.apply(self.new_task() if task_description is None else task_description)

    def apply(self, task: Task) -> Task:
        """The examples that are left, in their new order."""
        raise NotImplementedError

    def label(self, described: DataDescription) -> Any:
        """The label that the data set has for an example."""
        return self.dataset.indices_to_labels[described.index]


class LoadData(TaskTransform):
    """Loads every example from the data set."""

    def apply(self, task: Task) -> Task:
        for described in task:
            described.transforms.append(self.dataset.__getitem__)
        return task


class FilterLabels(TaskTransform):
    """Keeps the examples of the given labels."""

    def __init__(self, dataset: Any, labels: Iterable[Any]) -> None:
        super().__init__(dataset)
        self.labels = list(labels)
        self._kept = set(self.labels)

    def apply(self, task: Task) -> Task:
        return [described for described in task if self.label(described) in self._kept]


class NWays(TaskTransform):
    """Keeps the examples of `n` labels, drawn at random.

    Raises ValueError where there are fewer.
    """

    def __init__(self, dataset: Any, n: int = 2) -> None:
        super().__init__(dataset)
        self.n = n

    def new_task(self) -> Task:
        return [
            DataDescription(i)
            for label in _draw(self.dataset.labels, self.n)
            for i in self.dataset.labels_to_indices[label]
        ]

    def __call__(self, task_description: Task | None) -> Task:
        return self.new_task() if task_description is None else self.apply(task_description)

    def apply(self, task: Task) -> Task:
        kept = set(_draw(list({self.label(described) for described in task}), self.n))
        return [described for described in task if self.label(described) in kept]


class KShots(TaskTransform):
    """Keeps `k` examples of every label, drawn at random, label by label.

    Raises ValueError naming a label that has fewer.
    """

    def __init__(self, dataset: Any, k: int = 1, replacement: bool = False) -> None:
        super().__init__(dataset)
        self.k, self.replacement = k, replacement

    def apply(self, task: Task) -> Task:
        by_label: dict[Any, Task] = {}
        for described in task:
            by_label.setdefault(self.label(described), []).append(described)
        return [described for label, own in by_label.items() for described in self.of(label, own)]

    def of(self, label: Any, examples: list[Any]) -> list[Any]:
        """`k` of a label's examples."""
        if self.replacement:
            return [copy.deepcopy(chosen) for chosen in random.choices(examples, k=self.k)]
        if len(examples) < self.k:
            raise ValueError(
                f"label {label} has {len(examples)} examples but k={self.k}; ask for fewer, or for"
                " replacement=True"
            )
        return random.sample(examples, k=self.k)


class FusedNWaysKShots(TaskTransform):
    """`FilterLabels`, `NWays` and `KShots` in one, without going through the whole data set."""

    def __init__(
        self,
        dataset: Any,
        n: int = 2,
        k: int = 1,
        replacement: bool = False,
        filter_labels: list[Any] | None = None,
    ) -> None:
        super().__init__(dataset)
        self.n, self.k, self.replacement = n, k, replacement
        self.filter_labels = dataset.labels if filter_labels is None else filter_labels
        self.filter, self.nways = FilterLabels(dataset, self.filter_labels), NWays(dataset, n)
        self.kshots = KShots(dataset, k, replacement)

    def new_task(self) -> Task:
        labels = _draw(self.filter_labels, self.n)
        return [DataDescription(i) for label in labels for i in self._rows(label)]

    def __call__(self, task_description: Task | None) -> Task:
        return (
            self.new_task()
            if task_description is None
            else self.kshots(self.nways(self.filter(task_description)))
        )

    def _rows(self, label: Any) -> list[int]:
        own = self.dataset.labels_to_indices[label]
        return (
            [random.choice(own) for _ in range(self.k)]
            if self.replacement
            else self.kshots.of(label, own)
        )


class RemapLabels(TaskTransform):
    """Numbers the labels of the task 0, 1, ..., in random order unless `shuffle` is off."""

    def __init__(self, dataset: Any, shuffle: bool = True) -> None:
        super().__init__(dataset)
        self.shuffle = shuffle

    def apply(self, task: Task) -> Task:
        labels = list({self.label(described) for described in task})
        if self.shuffle:
            random.shuffle(labels)
        numbers = {label: number for number, label in enumerate(labels)}

        def remap(example: Any) -> list[Any]:
            inputs, label, *more = example
            return [inputs, numbers[label.item() if hasattr(label, "item") else label], *more]

        for described in task:
            described.transforms.append(remap)
        return task


class ConsecutiveLabels(TaskTransform):
    """Sorts the examples by the labels that the data set has for them, so that those of one label
    stand together.
    """

    def apply(self, task: Task) -> Task:
        return sorted(task, key=self.label)


def _draw(labels: list[Any], n: int) -> list[Any]:
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
