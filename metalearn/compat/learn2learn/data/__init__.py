"""learn2learn's data sets by class and tasks drawn from them, with its names; plain Python, nothing cached in pickles."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from metalearn.tasks.few_shot import LabelledImages

from .._missing import nearest
from . import transforms as transforms
from .transforms import DataDescription, Task


class MetaDataset(Dataset[Any]):
    """A data set with its examples by class: `labels_to_indices`, `indices_to_labels` and `labels`.

    Labels are read from the data set once, unless one of the two mappings is given.
    """

    def __init__(
        self,
        dataset: Any,
        labels_to_indices: Mapping[Any, list[int]] | None = None,
        indices_to_labels: Mapping[int, Any] | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"MetaDataset takes a torch Dataset, not a {type(dataset).__name__}")
        self.dataset = dataset
        if labels_to_indices is not None:
            indices_to_labels = {index: label for label, indices in labels_to_indices.items() for index in indices}
        self.indices_to_labels = dict(enumerate(_labels(dataset)) if indices_to_labels is None else indices_to_labels)
        self.labels_to_indices: dict[Any, list[int]] = {}
        for index, label in self.indices_to_labels.items():
            self.labels_to_indices.setdefault(label, []).append(index)
        if labels_to_indices is not None:
            self.labels_to_indices = {label: list(indices) for label, indices in labels_to_indices.items()}
        self.labels = list(self.labels_to_indices)

    def __getitem__(self, item: int) -> Any:
        return self.dataset[item]

    def __len__(self) -> int:
        return len(self.indices_to_labels)


class FilteredMetaDataset(MetaDataset):
    """The examples of some labels alone, renumbered from 0; labels stay as they are."""

    def __init__(self, dataset: Any, labels: Iterable[Any]) -> None:
        whole = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        kept = [(index, label) for label in labels for index in whole.labels_to_indices[label]]
        super().__init__(whole, indices_to_labels={i: label for i, (_, label) in enumerate(kept)})
        self.to_true_indices = [index for index, _ in kept]

    def __getitem__(self, item: int) -> Any:
        return self.dataset[self.to_true_indices[item]]


class Taskset(Dataset[Any]):
    """Tasks (data, labels) drawn from a data set by a list of task transforms, with Python's `random`.

    `[i]` draws task i the first time and is the same task from then on; `sample()` gives one at random. With `num_tasks=-1` every task
    is drawn anew, and the length is 1. Draws are those of learn2learn: the same seed of `random` gives the same tasks.

    Arguments:
        dataset: a `MetaDataset`, or what it takes.
        task_transforms: from `transforms`, or one's own: each takes a list of `DataDescription` (the first one None) and returns one.
        num_tasks: how many tasks there are.
        task_collate: from the list of a task's examples to its batch; torch's by default.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> from metalearn.tasks import glyphs
        >>> images = l2l.data.MetaDataset(glyphs("train"))
        >>> steps = [l2l.data.transforms.FusedNWaysKShots(images, n=5, k=2), l2l.data.transforms.LoadData(images)]
        >>> data, labels = l2l.data.Taskset(images, steps, num_tasks=100).sample()
        >>> data.shape
        torch.Size([10, 1, 28, 28])
    """

    def __init__(
        self,
        dataset: Any,
        task_transforms: Iterable[Callable[[Task | None], Task]] | Callable[[Task | None], Task] | None = None,
        num_tasks: int = -1,
        task_collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if num_tasks < -1 or num_tasks == 0:
            raise ValueError(f"num_tasks={num_tasks} must be positive, or -1 for tasks without end")
        self.dataset = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        self.task_transforms = [] if task_transforms is None else task_transforms
        self.num_tasks, self.task_collate = num_tasks, task_collate or default_collate
        self.sampled_descriptions: dict[int, Task] = {}

    def sample_task_description(self) -> Task:
        """The examples of a new task, each with what is to be done to it."""
        if callable(self.task_transforms):
            return self.task_transforms(None)
        task: Task | None = None
        for transform in self.task_transforms:
            task = transform(task)
        return [DataDescription(i) for i in range(len(self.dataset))] if task is None else task

    def get_task(self, task_description: Task) -> Any:
        """The batch of a task."""
        examples = []
        for described in task_description:
            example: Any = described.index
            for transform in described.transforms:
                example = transform(example)
            examples.append(example)
        return self.task_collate(examples)

    def sample(self) -> Any:
        """A task at random."""
        return self[random.randint(0, len(self) - 1)]

    def __len__(self) -> int:
        return 1 if self.num_tasks == -1 else self.num_tasks

    def __getitem__(self, i: int) -> Any:
        if self.num_tasks == -1:
            return self.get_task(self.sample_task_description())
        if not 0 <= i < self.num_tasks:
            raise IndexError(f"task {i} does not exist: there are {self.num_tasks}, 0 to {self.num_tasks - 1}")
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[i])

    def __iter__(self) -> Iterator[Any]:
        while self.num_tasks == -1:
            yield self[0]
        yield from (self[i] for i in range(self.num_tasks))


TaskDataset = Taskset
"""Its older name."""


def partition_task(data: Tensor, labels: Tensor, shots: int = 1) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A task -> (support data, support labels), (query data, query labels): the first `shots` examples of every label, and the others.

    Both come out by label. Raises ValueError where the labels are not equally many, or have no more than `shots` examples.
    """
    rows = [(labels == label).nonzero().flatten() for label in labels.unique()]
    counts = {len(r) for r in rows}
    if len(counts) != 1 or min(counts) <= shots:
        raise ValueError(f"the labels of this task have {sorted(counts)} examples; shots={shots} needs one number above it for all")
    support, query = torch.cat([r[:shots] for r in rows]), torch.cat([r[shots:] for r in rows])
    return (data[support], labels[support]), (data[query], labels[query])


def _labels(dataset: Any) -> list[Any]:
    if isinstance(dataset, LabelledImages):
        return dataset.labels.tolist()
    known = getattr(dataset, "targets", None)
    if known is not None and type(dataset).__module__.startswith("torchvision.") and dataset.target_transform is None:
        return torch.as_tensor(known).tolist()
    labels = [dataset[i][1] for i in range(len(dataset))]
    return [label.item() if hasattr(label, "item") else label for label in labels]


__getattr__ = nearest(
    __name__,
    ["DataDescription", "FilteredMetaDataset", "MetaDataset", "TaskDataset", "Taskset", "partition_task", "transforms"],
)
