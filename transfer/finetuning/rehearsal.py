"""Images of earlier tasks that take a share of every batch, each under the head of its own task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.runtime.files import Record, _checksum
from transfer.finetuning.data import order


class TaskHeads(nn.Module):
    """A head for each task; every example of a training batch goes through the head of its task.

    In evaluation mode, and while `tasks` is None, all examples go through the last head, that of
    the current task.

    Args:
        heads: the heads by task, the current task last.

    Example:
        >>> heads = TaskHeads([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> heads.tasks = torch.tensor([0, 1, 1])
        >>> heads(torch.ones(3, 2)).shape
        torch.Size([3, 3])
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.tasks: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Features (examples, ...) -> logits (examples, classes)."""
        if self.tasks is None or not self.training:
            return self.heads[-1](features)
        present = self.tasks.unique().tolist()
        if len(present) == 1:
            return self.heads[present[0]](features)
        rows = [(self.tasks == task).nonzero()[:, 0] for task in present]
        logits = [self.heads[task](features[row]) for task, row in zip(present, rows, strict=True)]
        # The logits task by task, put back into the order of the batch: (examples, classes).
        return torch.cat(logits)[torch.cat(rows).argsort()]


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Images of earlier tasks for a training.

    Args:
        inputs: (images, channels, height, width), as the training set has them.
        targets: (images,) labels within their tasks.
        tasks: (images,) the number of the task, which chooses the head in `TaskHeads`.
        current: the number of the task that is trained.
        count: how many of them are in every batch, in place of images of the current task.
    """

    inputs: Tensor
    targets: Tensor
    tasks: Tensor
    current: int
    count: int

    def joined(
        self, inputs: Tensor, targets: Tensor, batch: int, seed: int, *, balanced: bool
    ) -> tuple[Tensor, Tensor, Tensor, Iterator[Tensor]]:
        """The images of the current task with those of earlier ones behind them, and the batches.

        Args:
            inputs: of the current task (images, ...).
            targets: (images,).
            batch: images an update.
            seed: of the order of both.
            balanced: draw each class of the current task equally often.

        Returns:
            Inputs, targets, the task of each image, and endless batches of indices into them.
        """
        images = torch.cat([inputs, self.inputs.to(inputs)])
        labels = torch.cat([targets, self.targets.to(targets)])
        tasks = torch.cat([torch.full_like(targets, self.current), self.tasks.to(targets)])
        return images, labels, tasks, self._batches(targets.cpu(), batch, seed, balanced=balanced)

    def record(self) -> Record:
        """What decides the result, for the settings of a training."""
        tensors = {"inputs": self.inputs, "targets": self.targets, "tasks": self.tasks}
        stored = {name: tensor.cpu() for name, tensor in tensors.items()}
        return {"count": self.count, "data": _checksum(stored, "")[:16]}

    def _batches(
        self, targets: Tensor, batch: int, seed: int, *, balanced: bool
    ) -> Iterator[Tensor]:
        earlier = order(self.targets.cpu(), self.count, seed)
        if self.count >= batch:
            while True:
                yield next(earlier) + len(targets)
        own = order(targets, batch - self.count, seed, balanced=balanced)
        while True:
            yield torch.cat([next(own), next(earlier) + len(targets)])


def route(model: nn.Module, tasks: Tensor | None) -> None:
    """Tell the heads of a network, if it has one for each task, the tasks of a batch.

    Args:
        model: the network.
        tasks: (examples,); None does nothing.
    """
    if tasks is None:
        return
    for module in model.modules():
        if isinstance(module, TaskHeads):
            module.tasks = tasks
