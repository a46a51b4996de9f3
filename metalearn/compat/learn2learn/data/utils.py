"""Tools for data sets, loaders and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metalearn.compat.learn2learn._missing import nearest


class InfiniteIterator:
    """Repeats a loader without end.

    Args:
        dataloader: anything that can be iterated over more than once; a shuffling `DataLoader`
            shuffles every time.

    Raises:
        ValueError: at `next`, if the loader is empty.

    Example:
        >>> endless = InfiniteIterator([1, 2])
        >>> [next(endless) for _ in range(5)]
        [1, 2, 1, 2, 1]
    """

    def __init__(self, dataloader: Iterable[Any]) -> None:
        self.dataloader = dataloader
        self.iterator = iter(dataloader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.dataloader)
        try:
            return next(self.iterator)
        except StopIteration:
            raise ValueError(
                "InfiniteIterator has nothing to repeat: pass a DataLoader or a list that is not"
                " empty, not an iterator that ends"
            ) from None


class OnDeviceDataset(TensorDataset):
    """A whole data set as tensors on one device.

    On a CPU beside a GPU the tensors are kept in pinned memory.

    Args:
        dataset: pairs of a tensor, all of one shape, and a label.
        device: where to keep them; by default the CPU.
        transform: called with each input when it is read.

    Example:
        >>> from metalearn.tasks import glyphs
        >>> data = OnDeviceDataset(glyphs("test", classes=2), transform=lambda image: 1 - image)
        >>> data[0][0].shape, data[0][1]
        (torch.Size([1, 28, 28]), tensor(0))
    """

    def __init__(
        self, dataset: Any, device: Any = None, transform: Callable[[Any], Any] | None = None
    ) -> None:
        # By index: a data set without `__iter__` of its own need not raise IndexError at its end.
        examples = [dataset[index] for index in range(len(dataset))]
        if examples and not isinstance(examples[0][0], Tensor):
            raise TypeError(
                f"OnDeviceDataset takes tensors, not a {type(examples[0][0]).__name__}; give the "
                "data set transform=torchvision.transforms.ToTensor()"
            )
        inputs = torch.stack([example[0] for example in examples]).to(device=device)
        labels = torch.tensor([example[1] for example in examples]).to(device=device)
        if inputs.device.type == "cpu" and torch.cuda.is_available():
            inputs = inputs.pin_memory()
            labels = labels.pin_memory()
        super().__init__(inputs, labels)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        inputs, label = super().__getitem__(index)
        if self.transform is not None:
            inputs = self.transform(inputs)
        return inputs, label


def partition_task(
    data: Tensor, labels: Tensor, shots: int = 1
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split a task into support and query, both ordered by label.

    Args:
        data: the examples.
        labels: (examples,).
        shots: the number of examples of every label, the first ones, for the support set.

    Returns:
        (support data, support labels), (query data, query labels).

    Raises:
        ValueError: if the labels differ in their number of examples, or have no more than `shots`.
    """
    # The rows of each label, in the order of the data.
    rows = [(labels == label).nonzero().flatten() for label in labels.unique()]
    counts = {len(rows_of_label) for rows_of_label in rows}
    if len(counts) != 1 or min(counts) <= shots:
        raise ValueError(
            f"the labels of this task have {sorted(counts)} examples; shots={shots} needs one"
            " number above it for all"
        )
    support = torch.cat([rows_of_label[:shots] for rows_of_label in rows])
    query = torch.cat([rows_of_label[shots:] for rows_of_label in rows])
    return (data[support], labels[support]), (data[query], labels[query])


__getattr__ = nearest(__name__, ["InfiniteIterator", "OnDeviceDataset", "partition_task"])
