"""Labelled images in memory, and any data set read into them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.data.decoding import as_tensor
from metalearn.data.items import KEYS, class_names, item_pair, number_labels, one_label
from metalearn.data.vectors import LabelledVectors
from metalearn.runtime.checks import sequence
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress

log = logging.getLogger("metalearn")


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory as uint8 `(n, channels, height, width)`, with integer labels `(n,)`.

    Indexed like any torch data set: `[i]` is a float32 image in [0, 1] and its label.

    Args:
        images: uint8 `(n, channels, height, width)`.
        labels: with `names`, int64 `(n,)`, numbers into them. Without, labels of any kind, which
            are numbered 0, 1, ... in their order (see `number_labels`): they become the names, and
            `description["labels"]` has the number of each.
        names: of the classes.
        description: a JSON-able record of where the images come from (source, split, seed), which
            result lines carry.

    Raises:
        TypeError: if images, labels or names are of another type or shape.
        ValueError: if a label has no name.

    Example:
        >>> pixels = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
        >>> images = LabelledImages(pixels, torch.tensor([0, 0, 1, 1]), ("alpha", "beta"))
        >>> len(images), images[2][1], len(images.classes([1]))
        (4, 1, 2)
        >>> LabelledImages(pixels, ["dog", "cat", "dog", "dog"]).labels
        tensor([1, 0, 1, 1])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Any,
        names: Iterable[str] = (),
        description: Record | None = None,
    ) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
            raise TypeError(
                "images must be a tensor of uint8 (n, channels, height, width), not"
                f" {_kind(images)}"
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
            raise TypeError(
                f"labels must be int64 ({len(images)},), one an image, not {_kind(labels)}; without"
                " names they may be of any kind"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())} but there are"
                f" {len(self.names)} names; labels count from 0"
            )
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image: (channels, height, width)."""
        return tuple(self.images.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows: (rows, channels, height, width), uint8."""
        return self.images[rows]

    def classes(self, indices: Iterable[int], **description: Any) -> LabelledImages:
        """The images of some classes, relabelled 0, 1, ... in the order given.

        Args:
            indices: the numbers of the classes.
            description: entries to add to the description.

        Raises:
            ValueError: if a class does not exist or is named twice.
        """
        chosen = self._checked(indices)
        rows, labels = self._relabelled(chosen)
        return LabelledImages(
            self.images[rows],
            labels,
            [self.names[i] for i in chosen],
            {**self.description, **description},
        )

    def _checked(self, indices: Iterable[int]) -> list[int]:
        """The numbers of classes. Raises ValueError if one does not exist or is named twice."""
        chosen = [int(i) for i in indices]
        unknown = [i for i in chosen if not 0 <= i < len(self.names)]
        if unknown or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"classes {unknown or chosen} do not exist or repeat: there are {len(self.names)}"
                f" classes, 0 to {len(self.names) - 1}"
            )
        return chosen

    def _relabelled(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The rows of the images of some classes, and their new labels."""
        # Old label -> new label, and -1 for the classes that are left out.
        relabel = torch.full((len(self.names),), -1, dtype=torch.int64)
        relabel[chosen] = torch.arange(len(chosen))
        labels = relabel[self.labels]
        rows = torch.nonzero(labels >= 0).flatten()
        return rows, labels[rows]


def _kind(value: object) -> str:
    """The dtype and shape of a tensor, or the type of anything else."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


Convert = Callable[[Any, str], Tensor]  # an image and its name in messages -> its tensor


def in_memory(
    dataset: Any, keys: tuple[str, str] = KEYS, convert: Convert = as_tensor
) -> tuple[Tensor, Tensor, tuple[str, ...], Record]:
    """Read any data set into memory.

    Args:
        dataset: of pairs (image, label), or of dictionaries with both.
        keys: of the image and of the label, in dictionaries.
        convert: from an image and its name in messages to a tensor.

    Returns:
        Inputs (n, ...) as uint8, float32 or, for token ids, int64; labels (n,) int64 from 0, the
        classes' names by label, and the record of labels (see `number_labels`).

    Raises:
        TypeError: an item is no pair, or some items are token ids and others are not.
        KeyError: an item is a dictionary without the keys; its own keys are listed.
        ValueError: there are no items, their shapes differ, or parts of a `ConcatDataset` give one
            number to different classes.
    """
    if isinstance(dataset, LabelledImages | LabelledVectors):
        values = dataset.images if isinstance(dataset, LabelledImages) else dataset.inputs
        if convert is not as_tensor:
            values = converted(values, type(dataset).__name__, convert)
        return values, dataset.labels, dataset.names, {}
    count = length(dataset)
    name = type(dataset).__name__
    listed = class_names(dataset, keys[1])
    inputs: list[Tensor] = []
    labels: list[Any] = []
    with progress(f"reading {name} into memory", count, unit="item") as advance:
        for i in range(count):
            image, label = item_pair(dataset[i], f"item {i} of {name}", keys)
            inputs.append(compact(convert(image, f"item {i} of {name}")))
            labels.append(one_label(label, i, name))
            advance()
    numbers, classes, record = number_labels(labels, name)
    values = _stacked(inputs, name)
    return values, numbers, tuple(listed.get(label, label) for label in classes), record


def length(dataset: Any) -> int:
    """The number of items of a data set, at least 1.

    Raises:
        TypeError: it has no length.
        ValueError: it is empty.
    """
    name = type(dataset).__name__
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(
            f"{name} has no length, so its classes cannot be counted; use a data set with len() and"
            " [i]"
        ) from None
    if not count:
        raise ValueError(f"{name} is empty: there is nothing to draw tasks from")
    return count


def first_image(dataset: Any, keys: tuple[str, str] = KEYS) -> Any:
    """The image of the first item, as the data set has it."""
    if isinstance(dataset, LabelledImages):
        return dataset.take(torch.tensor([0]))[0]
    if isinstance(dataset, LabelledVectors):
        return dataset.inputs[0]
    length(dataset)
    return item_pair(dataset[0], f"item 0 of {type(dataset).__name__}", keys)[0]


def converted(values: Tensor, name: str, convert: Convert) -> Tensor:
    """Inputs in memory (items, ...) after a conversion of each."""
    parts = [compact(convert(value, f"item {i} of {name}")) for i, value in enumerate(values)]
    return _stacked(parts, name)


def _stacked(inputs: list[Tensor], name: str) -> Tensor:
    """The items of a data set as one tensor, in one dtype and one shape."""
    _check_tokens(inputs, name)
    # One dtype for all: a single image that does not fit 8 bits makes all of them floats.
    if any(image.dtype != torch.uint8 for image in inputs):
        inputs = [as_float(image) for image in inputs]
    return torch.stack(_in_one_shape(inputs, name))


def _check_tokens(inputs: list[Tensor], name: str) -> None:
    """Raise TypeError if some items are token ids and others are not."""
    tokens = [values.dtype == torch.int64 for values in inputs]
    if any(tokens) and not all(tokens):
        number = tokens.index(not tokens[0])
        raise TypeError(
            f"item {number} of {name} is {inputs[number].dtype} but item 0 is {inputs[0].dtype};"
            " give token ids as integers in all items, or floating-point values in all"
        )


def in_memory_together(
    *datasets: Any,
) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...], Record]:
    """Read data sets that share their classes, such as training and test, into memory.

    A class has the same number in all of them, that of the first data set, also if another has no
    image of some class.

    Returns:
        Inputs and labels of each data set, the classes' names, and the record of labels (see
        `number_labels`).

    Raises:
        ValueError: if two classes have one name, since they are matched by name.
    """
    parts = [in_memory(dataset) for dataset in datasets]
    # The joint list starts with the names of the first data set, so its numbers do not change.
    names = parts[0][2]
    for _, _, other_names, _ in parts:
        if other_names == names:
            continue
        _check_distinct(names)
        _check_distinct(other_names)
        names += tuple(name for name in other_names if name not in names)
    numbers = {name: number for number, name in enumerate(names)}
    numbered = []
    # Number the labels of each part by the joint list of names, unless they agree with it already.
    for inputs, labels, own_names, _ in parts:
        if own_names != names[: len(own_names)]:
            labels = torch.tensor([numbers[name] for name in own_names])[labels]
        numbered.append((inputs, labels))
    record: Record = {}
    if any(part[3] for part in parts):
        record["labels"] = numbers
    return numbered, names, record


def _check_distinct(names: tuple[str, ...]) -> None:
    """Raise ValueError if two classes have one name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"two classes are named {repeated[0]!r}, so the data sets cannot be matched by"
            " name; give them different names"
        )


def _in_one_shape(inputs: list[Tensor], name: str) -> list[Tensor]:
    """The inputs in one shape: grey images among colour ones are repeated to 3 channels."""
    grey = [_has_channels(image, 1) for image in inputs]
    if any(grey) and any(_has_channels(image, 3) for image in inputs):
        log.warning(
            "%d grey images of %s are repeated to 3 channels, as the others have", sum(grey), name
        )
        for i, image in enumerate(inputs):
            if grey[i]:
                inputs[i] = image.expand(3, -1, -1)
    for i, image in enumerate(inputs):
        if image.shape != inputs[0].shape:
            raise ValueError(
                f"item {i} of {name} has shape {tuple(image.shape)} but item 0 has"
                f" {tuple(inputs[0].shape)}; bring all to one size, for example with"
                " transform=Resize((84, 84))"
            )
    return inputs


def _has_channels(image: Tensor, channels: int) -> bool:
    return image.dim() == 3 and len(image) == channels


def channels_first(images: np.ndarray | Tensor) -> Tensor:
    """Images, grey or with colours last, as (n, channels, height, width)."""
    pixels = torch.as_tensor(images)
    if pixels.ndim == 3:
        return pixels[:, None]  # (n, height, width) -> (n, 1, height, width)
    if pixels.ndim == 4 and pixels.shape[-1] == 3:
        return pixels.permute(0, 3, 1, 2).contiguous()
    return pixels


def as_float(image: Tensor) -> Tensor:
    """The values of an image in [0, 1], if it is stored as uint8; others are returned unchanged."""
    return image / 255 if image.dtype == torch.uint8 else image


def compact(values: Tensor) -> Tensor:
    """The values as uint8 if that is exact (multiples of 1/255 in [0, 1]), else as float32.

    Token ids (int64) are returned unchanged.
    """
    if values.dtype in (torch.uint8, torch.int64):
        return values
    values = values.to(torch.float32)
    # k / 255 in float32 is exact for uint8: multiply, round, and compare with the way back.
    levels = values.mul(255).round()
    in_range = bool(((levels >= 0) & (levels <= 255)).all())
    if in_range and torch.equal(levels / 255, values):
        return levels.to(torch.uint8)
    return values
