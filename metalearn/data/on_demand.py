"""A data set whose images are read each time they are drawn, for one larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.runtime.progress import progress

from .decoding import as_tensor
from .images import Convert, LabelledImages, as_float, compact, length
from .items import KEYS, class_names, item_pair, labels_of, number_labels, one_label


class OnDemand:
    """The labels of a data set in memory, and its images read when they are asked for.

    Labels are taken from the data set's own list (`targets`, `labels`, `_labels`, a column), if it
    agrees with the first and the last item. Otherwise every item is read once.

    Args:
        dataset: of pairs (image, label), or of dictionaries with both.
        keys: of the image and of the label, in dictionaries.
        convert: from an image and its name in messages to a tensor.

    Attributes:
        labels: (items,) int64, numbered from 0.
        names: of the classes.
        record: of the number of each label (see `number_labels`).
        may_draw: whether reading an item may draw random numbers, as a data set's own transforms
            do.

    Raises:
        TypeError: an item is no pair, or a label does not name a class.
        KeyError: an item is a dictionary without the keys; its own keys are listed.
        ValueError: there are no items.

    Example:
        >>> items = [(torch.full((1, 2, 2), i / 255), "ab"[i % 2]) for i in range(4)]
        >>> images = OnDemand(items)
        >>> images.labels.tolist(), images.take([3, 0])[:, 0, 0, 0].tolist()
        ([0, 1, 0, 1], [3, 0])
    """

    def __init__(
        self, dataset: Any, keys: tuple[str, str] = KEYS, convert: Convert = as_tensor
    ) -> None:
        self.dataset = dataset
        self.keys = keys
        self.convert = convert
        self.name = type(dataset).__name__
        self.may_draw = not isinstance(dataset, LabelledImages)
        count = length(dataset)
        listed = class_names(dataset, keys[1])
        labels = self._labels(count)
        self.labels, classes, self.record = number_labels(labels, self.name)
        self.names = tuple(listed.get(label, label) for label in classes)
        self.shape = next(self._read([0])).shape

    def _labels(self, count: int) -> list[Any]:
        """One label an item."""
        listed = labels_of(self.dataset, self.keys[1])
        if listed is not None and len(listed) == count:
            ends = {i: one_label(listed[i], i, self.name) for i in (0, count - 1)}
            if all(self._label(i) == label for i, label in ends.items()):
                return listed
        with progress(f"reading the labels of {self.name}", count, unit="item") as advance:
            labels = []
            for i in range(count):
                labels.append(self._label(i))
                advance()
        return labels

    def _label(self, index: int) -> int | str:
        _, label = item_pair(self.dataset[index], self._item(index), self.keys)
        return one_label(label, index, self.name)

    def _read(self, rows: list[int]) -> Iterator[Tensor]:
        """Images as they would be kept in memory."""
        for row, image in zip(rows, self._raw(rows), strict=True):
            yield compact(self.convert(image, self._item(row)))

    def _raw(self, rows: list[int]) -> Iterator[Any]:
        """Images as the data set has them, one after another."""
        if isinstance(self.dataset, LabelledImages):  # as they are stored, not as `[i]` scales them
            yield from self.dataset.take(torch.tensor(rows))
            return
        for row in rows:
            image, _ = item_pair(self.dataset[row], self._item(row), self.keys)
            yield image

    def _item(self, row: int) -> str:
        """An item's name in messages."""
        return f"item {row} of {self.name}"

    def take(self, rows: Sequence[int]) -> Tensor:
        """The images of these items, (items, ...), as uint8, float32 or, for token ids, int64.

        Raises:
            ValueError: an image has another shape than the first of the data set.
        """
        numbers = [int(row) for row in rows]
        read = zip(numbers, self._read(numbers), strict=True)
        images = [self._in_shape(image, row) for row, image in read]
        if any(image.dtype != torch.uint8 for image in images):
            images = [as_float(image) for image in images]
        return torch.stack(images)

    def _in_shape(self, image: Tensor, row: int) -> Tensor:
        """An image in the shape of the first; grey among colour ones is repeated to 3 channels."""
        grey_among_colour = image.shape[:1] == (1,) and self.shape[:1] == (3,)
        if grey_among_colour and image.shape[1:] == self.shape[1:]:
            return image.expand(self.shape)
        if image.shape != self.shape:
            raise ValueError(
                f"{self._item(row)} has shape {tuple(image.shape)} but item 0 has"
                f" {tuple(self.shape)}; bring all to one size and kind, for example with"
                " transform=v2.Compose([v2.RGB(), v2.Resize((84, 84))])"
            )
        return image
