"""What the items of any data set hold: an image and a label, as a pair or in a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from metalearn.runtime.checks import sequence
from metalearn.runtime.files import Record

KEYS = ("image", "label")
"""The keys of items that are dictionaries."""


def item_pair(item: Any, name: str, keys: tuple[str, str] = KEYS) -> tuple[Any, Any]:
    """The image and the label of an item.

    Args:
        item: a pair (image, label), or a dictionary with both.
        name: what the item is called, for messages.
        keys: of the image and of the label, in a dictionary.

    Raises:
        TypeError: it is neither.
        KeyError: it is a dictionary without these keys; its own are listed.

    Example:
        >>> item_pair({"img": 1, "fine_label": 2}, "item 0", ("img", "fine_label"))
        (1, 2)
    """
    if isinstance(item, Mapping):
        missing = [key for key in keys if key not in item]
        if missing:
            raise KeyError(
                f"{name} has no key {missing[0]!r}; its keys are {', '.join(map(repr, item))}: name"
                " those of the image and the label with keys=(IMAGE, LABEL)"
            )
        return item[keys[0]], item[keys[1]]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"{name} is not a pair (image, label), or a dictionary of them")
    return item[0], item[1]


def class_names(dataset: Any, key: str = KEYS[1]) -> dict[str, str]:
    """The names of the classes of a data set, by label as text; none if it does not tell.

    They are its `classes`, as torchvision has them, or the names of its `features`, as Hugging
    Face's datasets have them. A `Subset` has those of the whole, and a `ConcatDataset` those of its
    parts.

    Args:
        dataset: any data set.
        key: of the labels, in `features`.

    Raises:
        ValueError: two parts of a `ConcatDataset` give one number to different classes.
    """
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset, key)
    if isinstance(dataset, ConcatDataset):
        return _joint_names(dataset, key)
    names = getattr(dataset, "classes", None)
    if callable(names):  # a method of LabelledImages, which has names beside it
        names = getattr(dataset, "names", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping) and key in features:
        names = getattr(features[key], "names", None)
    if not isinstance(names, list | tuple):
        return {}
    return {str(number): str(name) for number, name in enumerate(names)}


def _joint_names(dataset: Any, key: str) -> dict[str, str]:
    """The names of the classes of all parts of a `ConcatDataset`."""
    joint: dict[str, str] = {}
    for number, part in enumerate(dataset.datasets):
        for label, name in class_names(part, key).items():
            if joint.setdefault(label, name) != name:
                raise ValueError(
                    f"part {number} of the ConcatDataset has the label {label} for {name!r}, but"
                    f" another part for {joint[label]!r}, so two classes would become one; give"
                    " the parts labels of their own by target_transform, or mix tasks of each with"
                    " Mixture"
                )
    return joint


def labels_of(dataset: Any, key: str = KEYS[1]) -> list[Any] | None:
    """The labels of a data set without reading its images; None if it does not list them.

    Args:
        dataset: any data set.
        key: the column of the labels, for data sets in columns.

    Example:
        >>> images = TensorDataset(torch.rand(4, 3), torch.tensor([5, 6, 5, 6]))
        >>> labels_of(Subset(images, [3, 0]))
        [6, 5]
    """
    if isinstance(dataset, Subset):
        whole = labels_of(dataset.dataset, key)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        joint: list[Any] = []
        for part in dataset.datasets:
            labels = labels_of(part, key)
            if labels is None:
                return None
            joint += labels
        return joint
    if isinstance(dataset, TensorDataset):
        return _plain(dataset.tensors[1])
    if key in (getattr(dataset, "column_names", None) or ()):
        return _plain(dataset[key])
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if isinstance(values, list | tuple | Tensor | np.ndarray) and len(values) == len(dataset):
            change = getattr(dataset, "target_transform", None)
            listed = _plain(values)
            return listed if change is None else list(map(change, listed))
    return None


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)


def number_labels(labels: Any, source: str) -> tuple[Tensor, list[str], Record]:
    """Number labels of any kind from 0, in their order.

    Whole numbers (also negative, with gaps, as floats or booleans), strings and tensors of one
    element are accepted.

    Args:
        labels: one label an image.
        source: what they belong to, for messages.

    Returns:
        The class numbers (n,) int64, the classes' names in order, and a record of the number of
        each label, which is empty if labels are 0, 1, ... already.

    Raises:
        TypeError: naming the item, if a label does not name one class.

    Example:
        >>> number_labels([2, 1, 2], "images")
        (tensor([1, 0, 1]), ['1', '2'], {'labels': {'1': 0, '2': 1}})
    """
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    listed = sequence("labels", labels, "[0, 0, 1]")
    values = [one_label(label, i, source) for i, label in enumerate(listed)]
    # Numbers and strings cannot be put in one order.
    kinds = sorted({type(value).__name__ for value in values})
    if len(kinds) > 1:
        raise TypeError(
            f"the labels of {source} mix {' and '.join(kinds)}; make all of them numbers or all"
            " strings"
        )
    classes = sorted(set(values))
    numbers = {value: number for number, value in enumerate(classes)}
    record: Record = {}
    if classes != list(range(len(classes))):
        record["labels"] = {str(value): number for value, number in numbers.items()}
    names = [str(value) for value in classes]
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64), names, record


def one_label(label: Any, index: int, source: str) -> int | str:
    """One label as a whole number or a string."""
    # A scalar of torch or numpy of one of the kinds bool, int, unsigned, float and text.
    value = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
    if value.size == 1 and value.dtype.kind in "biufU":
        label = value.item()
    if isinstance(label, str):
        return label
    if isinstance(label, Integral):
        return int(label)
    if isinstance(label, Real) and float(label).is_integer():
        return int(float(label))
    raise TypeError(
        f"the label of item {index} of {source} is {label!r}, not an integer or a string; number"
        " the classes, for example with target_transform"
    )
