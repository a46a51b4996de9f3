"""Labelled images in memory, and any data set read into them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.data.decoding import as_tensor
from metalearn.runtime.checks import sequence
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress

log = logging.getLogger("metalearn")


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory as uint8 `(n, channels, height, width)`, with integer labels `(n,)` and the
    classes' names.

    Indexed like any torch data set: `[i]` is a float32 image in [0, 1] and its label. `description`
    is a JSON-able record of where the images come from (source, split, seed), which result lines
    carry. Raises ValueError or TypeError naming what does not fit.

    Without names, labels of any kind are numbered 0, 1, ... in their order (see `number_labels`):
    they become the names, and `description["labels"]` has the number of each. With names, labels
    count from 0 and say which name.

    Example:
        >>> import torch
        >>> images = LabelledImages(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("alpha", "beta"))
        >>> len(images), images[2][1], len(images.classes([1]))
        (4, 1, 2)
        >>> LabelledImages(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), ["dog", "cat", "dog"]).labels
        tensor([1, 0, 1])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Any,
        names: Iterable[str] = (),
        description: Record | None = None,
    ) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
            kind = (
                f"{images.dtype} {tuple(images.shape)}"
                if isinstance(images, Tensor)
                else f"a {type(images).__name__}"
            )
            raise TypeError(
                f"images must be a tensor of uint8 (n, channels, height, width), not {kind}"
            )
        self.names = tuple(sequence("names", names, "['cat', 'dog']"))
        self.description: Record = dict(description or {})
        if not self.names:
            labels, classes, record = number_labels(labels, "the images")
            self.names = tuple(classes)
            self.description |= record
        if (
            not isinstance(labels, Tensor)
            or labels.dtype != torch.int64
            or labels.shape != images.shape[:1]
        ):
            kind = (
                f"{labels.dtype} {tuple(labels.shape)}"
                if isinstance(labels, Tensor)
                else type(labels).__name__
            )
            raise TypeError(
                f"labels must be int64 ({len(images)},), one an image, not {kind}; without names"
                " they may be of any kind"
            )
        self.images = images
        self.labels = labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())} but there are"
                f" {len(self.names)} names; labels count from 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    def classes(self, indices: Iterable[int], **description: Any) -> LabelledImages:
        """The images of these classes alone, relabelled 0, 1, ... in the order given; keywords are
        added to the description.
        """
        chosen = [int(i) for i in indices]
        unknown = [i for i in chosen if not 0 <= i < len(self.names)]
        if unknown or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"classes {unknown or chosen} do not exist or repeat: there are {len(self.names)}"
                f" classes, 0 to {len(self.names) - 1}"
            )
        relabel = torch.full((len(self.names),), -1, dtype=torch.int64)
        relabel[chosen] = torch.arange(len(chosen))
        labels = relabel[self.labels]
        keep = labels >= 0
        return LabelledImages(
            self.images[keep],
            labels[keep],
            [self.names[i] for i in chosen],
            {**self.description, **description},
        )


def number_labels(labels: Any, source: str) -> tuple[Tensor, list[str], Record]:
    """Labels of any kind -> class numbers (n,) int64 from 0, the classes' names in order, and a
    record of which label became which number.

    Whole numbers (also negative, with gaps, as floats or booleans), strings and tensors of one
    element are taken. Classes are numbered in the order of their labels. The record is empty where
    labels are 0, 1, ... already.

    Raises TypeError, naming the item, for a label that does not name one class.

    Example:
        >>> number_labels([2, 1, 2], "images")
        (tensor([1, 0, 1]), ['1', '2'], {'labels': {'1': 0, '2': 1}})
    """
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    values = [
        _label(label, i, source) for i, label in enumerate(sequence("labels", labels, "[0, 0, 1]"))
    ]
    kinds = sorted({type(value).__name__ for value in values})
    if len(kinds) > 1:
        raise TypeError(
            f"the labels of {source} mix {' and '.join(kinds)}; make all of them numbers or all"
            " strings"
        )
    classes = sorted(set(values))
    numbers = {value: number for number, value in enumerate(classes)}
    names = [str(value) for value in classes]
    record = (
        {}
        if classes == list(range(len(classes)))
        else {"labels": dict(zip(names, numbers.values(), strict=True))}
    )
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64), names, record


def _label(label: Any, index: int, source: str) -> int | str:
    """One label as a whole number or a string."""
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


def _in_memory(dataset: Any) -> tuple[Tensor, Tensor, tuple[str, ...], Record]:
    """Any data set -> inputs (n, ...) as uint8 or float32, labels (n,) int64 from 0, names by
    label, and which label became which.
    """
    if isinstance(dataset, LabelledImages):
        return dataset.images, dataset.labels, dataset.names, {}
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(
            f"{type(dataset).__name__} has no length, so its classes cannot be counted; use a data"
            " set with len() and [i]"
        ) from None
    name = type(dataset).__name__
    inputs: list[Tensor] = []
    labels: list[Any] = []
    with progress(f"reading {name} into memory", count, unit="item") as advance:
        for i in range(count):
            item = dataset[i]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise TypeError(f"item {i} of {name} is not a pair (image, label)")
            inputs.append(_compact(as_tensor(item[0], f"item {i} of {name}")))
            labels.append(_label(item[1], i, name))
            advance()
    if not inputs:
        raise ValueError(f"{name} is empty: there is nothing to draw tasks from")
    if any(image.dtype != torch.uint8 for image in inputs):
        inputs = [image / 255 if image.dtype == torch.uint8 else image for image in inputs]
    numbers, classes, record = number_labels(labels, name)
    return torch.stack(_alike(inputs, name)), numbers, _names(dataset, classes), record


def in_memory_together(
    *datasets: Any,
) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...], Record]:
    """Data sets that share their classes (training and test) -> inputs and labels of each, the
    classes' names, and the record of labels.

    A class has one number in all of them, that of the first data set, also where another has no
    image of some class.
    """
    parts = [_in_memory(dataset) for dataset in datasets]
    names = parts[0][2]
    for _, _, others, _ in parts:
        if others == names:
            continue
        repeated = [
            name
            for listing in (names, others)
            for name, count in Counter(listing).items()
            if count > 1
        ]
        if repeated:
            raise ValueError(
                f"two classes are named {repeated[0]!r}, so the data sets cannot be matched by"
                " name; name them apart"
            )
        names += tuple(name for name in others if name not in names)
    numbers = {name: number for number, name in enumerate(names)}
    read = []
    for inputs, labels, others, _ in parts:
        if others != names[: len(others)]:
            labels = torch.tensor([numbers[name] for name in others])[labels]
        read.append((inputs, labels))
    record: Record = {}
    if any(part[3] for part in parts):
        record["labels"] = numbers
    return read, names, record


def _alike(inputs: list[Tensor], name: str) -> list[Tensor]:
    """The inputs in one shape: grey images (1, height, width) among colour ones are repeated to 3
    channels, which is exact.
    """
    grey = [image for image in inputs if image.dim() == 3 and len(image) == 1]
    if grey and any(image.dim() == 3 and len(image) == 3 for image in inputs):
        log.warning(
            "%d grey images of %s are repeated to 3 channels, as the others have", len(grey), name
        )
        inputs = [
            image.expand(3, -1, -1) if image.dim() == 3 and len(image) == 1 else image
            for image in inputs
        ]
    for i, image in enumerate(inputs):
        if image.shape != inputs[0].shape:
            raise ValueError(
                f"item {i} of {name} has shape {tuple(image.shape)} but item 0 has"
                f" {tuple(inputs[0].shape)}; bring all to one size, for example with"
                " transform=Resize((84, 84))"
            )
    return inputs


def _names(dataset: Any, classes: list[str]) -> tuple[str, ...]:
    """The names of the classes: those of the data set where labels count in its `classes`, as
    torchvision's do.
    """
    named = [str(name) for name in getattr(dataset, "classes", ())]
    return tuple(
        named[int(label)] if label.isdecimal() and int(label) < len(named) else label
        for label in classes
    )


def _compact(values: Tensor) -> Tensor:
    """uint8 where that loses nothing (256 levels of [0, 1]), else float32."""
    if values.dtype == torch.uint8:
        return values
    values = values.to(torch.float32)
    levels = values.mul(255).round()
    whole = bool(((levels >= 0) & (levels <= 255)).all()) and torch.equal(levels / 255, values)
    return levels.to(torch.uint8) if whole else values
