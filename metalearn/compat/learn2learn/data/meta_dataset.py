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
            indices_to_labels = {
                index: label for label, indices in labels_to_indices.items() for index in indices
            }
        self.indices_to_labels = dict(
            enumerate(_labels(dataset)) if indices_to_labels is None else indices_to_labels
        )
        self.labels_to_indices: dict[Any, list[int]] = {}
        for index, label in self.indices_to_labels.items():
            self.labels_to_indices.setdefault(label, []).append(index)
        if labels_to_indices is not None:
            self.labels_to_indices = {
                label: list(indices) for label, indices in labels_to_indices.items()
            }
        self.labels = list(self.labels_to_indices)

    def __getitem__(self, item: int) -> Any:
        return self.dataset[item]

    def __len__(self) -> int:
        return len(self.indices_to_labels)


class UnionMetaDataset(MetaDataset):
    """The examples of several data sets, one after the other, with labels numbered anew.

    A label of two data sets becomes two labels: 0 to 2 for the three labels of the first, in the
    order of its `labels`, and so on.

    Args:
        datasets: At least one `MetaDataset`, or what it takes.

    Example:
        >>> from metalearn.tasks import glyphs
        >>> union = UnionMetaDataset([glyphs("train", classes=3), glyphs("test", classes=2)])
        >>> union.labels, len(union)
        ([0, 1, 2, 3, 4], 100)
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = [d if isinstance(d, MetaDataset) else MetaDataset(d) for d in datasets]
        if not self.datasets:
            raise ValueError("UnionMetaDataset takes at least one data set")
        numbered: list[int] = []
        labels = 0
        for dataset in self.datasets:
            number = {label: labels + i for i, label in enumerate(dataset.labels)}
            numbered += [number[dataset.indices_to_labels[i]] for i in range(len(dataset))]
            labels += len(number)
        super().__init__(ConcatDataset(self.datasets), indices_to_labels=dict(enumerate(numbered)))

    def __getitem__(self, item: int) -> Any:
        inputs, _, *more = self.dataset[item]
        return [inputs, self.indices_to_labels[item], *more]


class FilteredMetaDataset(MetaDataset):
    """The examples of some labels alone, renumbered from 0; labels stay as they are."""

    def __init__(self, dataset: Any, labels: Iterable[Any]) -> None:
        whole = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        kept = [(index, label) for label in labels for index in whole.labels_to_indices[label]]
        super().__init__(whole, indices_to_labels={i: label for i, (_, label) in enumerate(kept)})
        self.to_true_indices = [index for index, _ in kept]

    def __getitem__(self, item: int) -> Any:
        return self.dataset[self.to_true_indices[item]]


def _labels(dataset: Any) -> list[Any]:
    if isinstance(dataset, LabelledImages):
        return dataset.labels.tolist()
    known = getattr(dataset, "targets", None)
    if (
        known is not None
        and type(dataset).__module__.startswith("torchvision.")
        and dataset.target_transform is None
    ):
        return torch.as_tensor(known).tolist()
    labels = [dataset[i][1] for i in range(len(dataset))]
    return [label.item() if hasattr(label, "item") else label for label in labels]


__getattr__ = nearest(__name__, ["FilteredMetaDataset", "MetaDataset", "UnionMetaDataset"])
