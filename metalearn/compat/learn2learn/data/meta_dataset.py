"""Data sets with their examples by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset

from metalearn.compat.learn2learn._missing import nearest
from metalearn.data.images import LabelledImages


class MetaDataset(Dataset[Any]):
    """A data set with its examples by class: `labels_to_indices`, `indices_to_labels` and `labels`.

    Args:
        dataset: examples (input, label, ...).
        labels_to_indices: if given, labels are not read from the data set.
        indices_to_labels: likewise.

    Raises:
        TypeError: if `dataset` is no torch data set.
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
        self.labels_to_indices: dict[Any, list[int]] = {}
        self.indices_to_labels: dict[int, Any] = {}
        if labels_to_indices is not None:
            for label, indices in labels_to_indices.items():
                self.labels_to_indices[label] = list(indices)
                self.indices_to_labels.update(dict.fromkeys(indices, label))
        else:
            if indices_to_labels is None:
                indices_to_labels = dict(enumerate(_labels(dataset)))
            self.indices_to_labels.update(indices_to_labels)
            for index, label in indices_to_labels.items():
                self.labels_to_indices.setdefault(label, []).append(index)
        self.labels = list(self.labels_to_indices)

    def __getitem__(self, item: int) -> Any:
        return self.dataset[item]

    def __len__(self) -> int:
        return len(self.indices_to_labels)


def by_class(dataset: Any) -> MetaDataset:
    """The data set as a `MetaDataset`."""
    return dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)


class UnionMetaDataset(MetaDataset):
    """The examples of several data sets, one after the other, with new labels.

    A label of two data sets becomes two labels: 0 to 2 for the three labels of the first, in the
    order of its `labels`, and so on.

    Args:
        datasets: `MetaDataset`s or data sets for them, at least one.

    Raises:
        ValueError: if there is no data set.

    Example:
        >>> from metalearn.tasks import glyphs
        >>> union = UnionMetaDataset([glyphs("train", classes=3), glyphs("test", classes=2)])
        >>> union.labels, len(union)
        ([0, 1, 2, 3, 4], 100)
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = [by_class(dataset) for dataset in datasets]
        if not self.datasets:
            raise ValueError("UnionMetaDataset takes at least one data set")
        labels: list[int] = []  # the new label of every example
        count = 0  # labels of the data sets before this one
        for dataset in self.datasets:
            numbers = {label: count + i for i, label in enumerate(dataset.labels)}
            labels += [numbers[dataset.indices_to_labels[i]] for i in range(len(dataset))]
            count += len(numbers)
        super().__init__(ConcatDataset(self.datasets), indices_to_labels=dict(enumerate(labels)))

    def __getitem__(self, item: int) -> Any:
        # The label of the part is replaced by the new one.
        inputs, _, *more = self.dataset[item]
        return [inputs, self.indices_to_labels[item], *more]


class FilteredMetaDataset(MetaDataset):
    """The examples of some labels, numbered from 0; the labels do not change.

    Args:
        dataset: a `MetaDataset`, or a data set for one.
        labels: those to keep.
    """

    def __init__(self, dataset: Any, labels: Iterable[Any]) -> None:
        whole = by_class(dataset)
        self.to_true_indices: list[int] = []
        labels_of_examples: list[Any] = []
        for label in labels:
            indices = whole.labels_to_indices[label]
            self.to_true_indices += indices
            labels_of_examples += [label] * len(indices)
        super().__init__(whole, indices_to_labels=dict(enumerate(labels_of_examples)))

    def __getitem__(self, item: int) -> Any:
        return self.dataset[self.to_true_indices[item]]


def plain_label(label: Any) -> Any:
    """A label as a Python number, if it is a scalar of torch or numpy."""
    return label.item() if hasattr(label, "item") else label


def _labels(dataset: Any) -> list[Any]:
    """The label of every example."""
    if isinstance(dataset, LabelledImages):
        return dataset.labels.tolist()
    # torchvision's own data sets list their labels: no image has to be decoded for them.
    targets = getattr(dataset, "targets", None)
    is_torchvisions = type(dataset).__module__.startswith("torchvision.")
    if targets is not None and is_torchvisions and dataset.target_transform is None:
        return torch.as_tensor(targets).tolist()
    return [plain_label(dataset[i][1]) for i in range(len(dataset))]


__getattr__ = nearest(__name__, ["FilteredMetaDataset", "MetaDataset", "UnionMetaDataset"])
