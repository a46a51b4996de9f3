"""Tasks that a list of transforms draws from a data set."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset, default_collate

from metalearn.compat.learn2learn._missing import nearest

from .meta_dataset import by_class
from .transforms import DataDescription, Task


class Taskset(Dataset[Any]):
    """Tasks (data, labels) that a list of transforms draws from a data set.

    `[i]` draws task i the first time and is the same task from then on; `sample()` gives one at
    random. With `num_tasks=-1` every task is new, and the length is 1. Tasks are drawn with
    Python's `random` as in learn2learn: the same seed gives the same tasks.

    Args:
        dataset: a `MetaDataset`, or a data set for one.
        task_transforms: functions, such as those of `transforms`, from a list of `DataDescription`
            to another; the first one receives None.
        num_tasks: the number of tasks; -1 for tasks without end.
        task_collate: makes the batch of a task from the list of its examples; torch's by default.

    Raises:
        ValueError: for another number of tasks.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> from metalearn.tasks import glyphs
        >>> images = l2l.data.MetaDataset(glyphs("train"))
        >>> choose = l2l.data.transforms.FusedNWaysKShots(images, n=5, k=2)
        >>> load = l2l.data.transforms.LoadData(images)
        >>> data, labels = l2l.data.Taskset(images, [choose, load], num_tasks=100).sample()
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
        self.dataset = by_class(dataset)
        self.task_transforms = [] if task_transforms is None else task_transforms
        self.num_tasks = num_tasks
        self.task_collate = task_collate or default_collate
        # Tasks that were drawn, which stay the same from then on.
        self.sampled_descriptions: dict[int, Task] = {}

    def sample_task_description(self) -> Task:
        """Draw a new task: its examples, each with the transforms to apply to it."""
        # One function may make the whole task.
        if callable(self.task_transforms):
            return self.task_transforms(None)
        task: Task | None = None
        for transform in self.task_transforms:
            task = transform(task)
        if task is None:
            return [DataDescription(i) for i in range(len(self.dataset))]
        return task

    def description(self, i: int) -> Task:
        """The examples of task i, which is drawn the first time."""
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.sampled_descriptions[i]

    def get_task(self, task_description: Task) -> Any:
        """The batch of a task."""
        examples = []
        for described in task_description:
            # The first transform loads the example of this index.
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
        return self.get_task(self.description(i))

    def __iter__(self) -> Iterator[Any]:
        while self.num_tasks == -1:
            yield self[0]
        yield from (self[i] for i in range(self.num_tasks))


TaskDataset = Taskset
"""The older name of `Taskset` in learn2learn."""

__getattr__ = nearest(__name__, ["DataDescription", "TaskDataset", "Taskset"])
