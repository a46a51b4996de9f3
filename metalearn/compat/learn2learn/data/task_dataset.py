"""Tasks drawn from a data set by a list of transforms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset, default_collate

from metalearn.compat.learn2learn._missing import nearest

from .meta_dataset import MetaDataset
from .transforms import DataDescription, Task


class Taskset(Dataset[Any]):
    """Tasks (data, labels) drawn from a data set by a list of task transforms, with Python's
    `random`.

    `[i]` draws task i the first time and is the same task from then on; `sample()` gives one at
    random. With `num_tasks=-1` every task is drawn anew, and the length is 1. Draws are those of
    learn2learn: the same seed of `random` gives the same tasks.

    Arguments:
        dataset: a `MetaDataset`, or what it takes.
        task_transforms: from `transforms`, or one's own: each takes a list of `DataDescription`
            (the first one None) and returns one.
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
        task_transforms: (
            Iterable[Callable[[Task | None], Task]] | Callable[[Task | None], Task] | None
        ) = None,
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
            raise IndexError(
                f"task {i} does not exist: there are {self.num_tasks}, 0 to {self.num_tasks - 1}"
            )
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[i])

    def __iter__(self) -> Iterator[Any]:
        while self.num_tasks == -1:
            yield self[0]
        yield from (self[i] for i in range(self.num_tasks))


TaskDataset = Taskset
"""Its older name."""


__getattr__ = nearest(__name__, ["DataDescription", "TaskDataset", "Taskset"])
