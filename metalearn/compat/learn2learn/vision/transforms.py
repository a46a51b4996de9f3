"""Transforms of the images of a task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.data.transforms import Task, TaskTransform


class RandomClassRotation(TaskTransform):
    """Turns all images of a class by one angle, drawn from `degrees` for every class of the task.

    learn2learn 0.2.0 also draws an angle for every class, but turns all of them by the last one.
    """

    def __init__(self, dataset: Any, degrees: Sequence[float]) -> None:
        super().__init__(dataset)
        self.degrees = degrees

    def apply(self, task: Task) -> Task:
        """Add the turn of its class to every example."""
        # One turn for each class, drawn when its first example comes.
        turns: dict[Any, _Turn] = {}
        for described in task:
            label = self.label(described)
            if label not in turns:
                turns[label] = _Turn(random.choice(self.degrees))
            described.transforms.append(turns[label])
        return task


class _Turn:
    """Turns the image of an example."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __call__(self, example: Any) -> Any:
        image, label = example
        return self.turn(image), label

    def turn(self, image: Any) -> Any:
        """Turn an image; multiples of 90 degrees are exact."""
        if isinstance(image, Tensor) and self.degrees % 90 == 0:
            return torch.rot90(image, int(self.degrees // 90), (-2, -1))
        from torchvision.transforms.functional import rotate

        return rotate(image, self.degrees)


__getattr__ = nearest(__name__, ["RandomClassRotation"])
