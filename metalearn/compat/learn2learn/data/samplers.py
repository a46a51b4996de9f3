"""Tasks as batches of indices, for a `DataLoader`."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler

from metalearn.compat.learn2learn._missing import nearest

from .task_dataset import DataDescription, Taskset


class TasksetSampler(Sampler[list[int]]):
    """The indices of each task's examples, as the `batch_sampler` of a `DataLoader`.

    The loader's workers load the examples. Only the taskset's choice of examples is used; changes
    by its transforms, such as new labels, are not applied.

    Args:
        taskset: the tasks; those without end (num_tasks=-1) are drawn without end.
        shuffle: whether to shuffle the tasks, with Python's `random`.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> from metalearn.tasks import glyphs
        >>> images = l2l.data.MetaDataset(glyphs("train", classes=8))
        >>> choose = l2l.data.transforms.FusedNWaysKShots(images, n=5, k=2)
        >>> sampler = TasksetSampler(l2l.data.Taskset(images, choose, num_tasks=3))
        >>> [len(indices) for indices in sampler]
        [10, 10, 10]
    """

    def __init__(self, taskset: Taskset, shuffle: bool = True) -> None:
        self.taskset = taskset
        self.shuffle = shuffle

    def description2indices(self, task_description: list[DataDescription]) -> list[int]:
        """The examples of a task by their indices in the data set."""
        return [described.index for described in task_description]

    def __iter__(self) -> Iterator[list[int]]:
        taskset = self.taskset
        while taskset.num_tasks == -1:
            yield self.description2indices(taskset.sample_task_description())
        # A task that was drawn before is the same again.
        order = list(range(taskset.num_tasks))
        if self.shuffle:
            random.shuffle(order)
        for i in order:
            yield self.description2indices(taskset.description(i))

    def __len__(self) -> int:
        """The number of tasks. Raises TypeError for tasks without end."""
        if self.taskset.num_tasks == -1:
            raise TypeError("these tasks have no end (num_tasks=-1)")
        return self.taskset.num_tasks


__getattr__ = nearest(__name__, ["TasksetSampler"])
