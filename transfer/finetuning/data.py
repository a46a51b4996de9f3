"""The examples of a fine-tuning: data sets of several inputs, subsets and batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sequences import Sequences
from metalearn.network.forward import Inputs, map_tensors


@dataclass
class Batches:
    """Batches of a training set, in a fixed order.

    Args:
        inputs: of all images.
        targets: their labels, (images,).
        indices: of the images of each batch.
        weight: of each class in the loss, (classes,); None if all are equal.
        tasks: the number of each image's task, (images,), which chooses its head; None if there is
            one task.
    """

    inputs: Inputs
    targets: Tensor
    indices: Iterator[Tensor]
    weight: Tensor | None = None
    tasks: Tensor | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Inputs, Tensor, Tensor | None]:
        index = next(self.indices).to(self.targets.device)
        tasks = None if self.tasks is None else self.tasks[index]
        return rows_at(self.inputs, index), self.targets[index], tasks


class Structured:
    """A data set whose inputs are tuples or dictionaries of tensors.

    `inputs` has each of their tensors stacked. `[i]` gives only a position and a label.

    Raises:
        ValueError: shapes differ; names the item and the entry.
        TypeError: an entry is no tensor.
    """

    def __init__(self, dataset: Any) -> None:
        self.name = type(dataset).__name__
        # Each item is read once: reading may be slow, or augment at random.
        items = [dataset[i] for i in range(len(dataset))]
        self.labels = [label for _, label in items]
        first = items[0][0]
        if isinstance(first, Mapping):
            self.inputs: Inputs = {key: self._stacked(items, key) for key in first}
        else:
            self.inputs = tuple(self._stacked(items, key) for key in range(len(first)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        # Stands in for an image where only labels are read.
        return torch.tensor([float(index)]), self.labels[index]

    def _stacked(self, items: list[Any], key: Any) -> Tensor:
        tensors: list[Tensor] = []
        for i, (inputs, _) in enumerate(items):
            try:
                tensors.append(torch.as_tensor(inputs[key]))
            except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"entry {key!r} of item {i} of {self.name} is missing or no tensor ({error});"
                    " give every item one"
                ) from error
            if tensors[i].shape != tensors[0].shape:
                raise ValueError(
                    f"entry {key!r} of item {i} of {self.name} has shape {tuple(tensors[i].shape)}"
                    f" but item 0 has {tuple(tensors[0].shape)}; bring all to one shape, for"
                    " example by padding"
                )
        return torch.stack(tensors)  # (examples, *shape of the entry)


class WithNumbers:
    """A data set of (input, numbers), with its numbers apart.

    `targets` has the numbers of all items stacked, and `inputs` a list of their inputs, or the
    tensor of a `TensorDataset`. `[i]` gives the input and the label 0.

    Raises:
        TypeError: it is no data set of pairs, or an item has no numbers.
        ValueError: items have different shapes of numbers, or there are none.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"the {name} set is a {type(dataset).__name__}; give a data set of (input,"
                " numbers), such as torch.utils.data.TensorDataset(images, votes)"
            )
        self.inputs: Any = []
        if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
            self.inputs, self.targets = dataset.tensors
            return
        # Each item is read once: reading may be slow, or augment at random.
        targets: list[Tensor] = []
        for i in range(len(dataset)):
            try:
                entry, numbers = dataset[i]
                targets.append(torch.as_tensor(numbers))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"item {i} of the {name} set is no pair (input, numbers): {error}"
                ) from error
            self.inputs.append(entry)
            if targets[i].shape != targets[0].shape:
                raise ValueError(
                    f"the targets of item {i} of the {name} set have shape"
                    f" {tuple(targets[i].shape)} but those of item 0 {tuple(targets[0].shape)}"
                )
        if not targets:
            raise ValueError(f"the {name} set is empty; give it items")
        self.targets = torch.stack(targets)  # (items, *shape of the numbers)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.inputs[index], 0


def structured(dataset: Any) -> Any:
    """The data set itself, or `Structured` if its inputs are tuples or dictionaries.

    Raises:
        TypeError: it is no data set of pairs (input, label).
    """
    if dataset is None or isinstance(dataset, LabelledImages):
        return dataset
    indexable = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, Tensor | str | bytes | Mapping) or not indexable:
        raise TypeError(
            f"a {type(dataset).__name__} is no data set: it needs len() and [i], which gives pairs"
            " (image, label); put tensors into torch.utils.data.TensorDataset(images, labels)"
        )
    if not len(dataset):
        return dataset
    item = dataset[0]
    if isinstance(item, Mapping):
        raise TypeError(
            f"item 0 of {type(dataset).__name__} is a dictionary ({', '.join(map(str, item))});"
            " give pairs of inputs and label, such as ({'input_ids': ids, 'attention_mask':"
            " mask}, label)"
        )
    if not isinstance(item, tuple | list) or len(item) != 2:
        return dataset
    inputs = item[0]
    if isinstance(inputs, Mapping):
        return Structured(dataset)
    several = isinstance(inputs, tuple | list) and len(inputs) > 0
    if several and all(isinstance(entry, Tensor | np.ndarray) for entry in inputs):
        return Structured(dataset)
    return dataset


def sequence_parts(train: Sequences, *others: Any) -> list[tuple[Inputs, Tensor]]:
    """Inputs and labels of sets of sequences that belong together.

    Raises:
        TypeError: one of them is another kind of data set.
        ValueError: they differ in the number of classes, of labels, or in the sizes of the inputs.
    """
    for data in others:
        if not isinstance(data, Sequences):
            raise TypeError(
                f"the training set is {train!r}, and another part is a {type(data).__name__}; give"
                " Sequences for all parts"
            )
        if data.dimensions != train.dimensions:
            raise ValueError(
                f"the training set has {train.dimensions} and another part {data.dimensions}; give"
                " all the same"
            )
    return [(data.inputs, data.targets) for data in (train, *others)]


def named_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of a structure by name.

    Example:
        >>> list(named_tensors((torch.ones(1), torch.ones(1)))), list(named_tensors(torch.ones(1)))
        (['inputs.0', 'inputs.1'], ['inputs'])
    """
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    entries = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {f"inputs.{key}": tensor for key, tensor in entries}


def rows_at(inputs: Inputs, index: Tensor, device: torch.device | None = None) -> Inputs:
    """The examples at `index` of every tensor, on the device."""
    return map_tensors(lambda tensor: tensor[index].to(device or tensor.device), inputs)


def subset(targets: Tensor, images: int | float | None, seed: int) -> Tensor:
    """Indices of some training images, drawn by `seed`; each class keeps its share.

    Shares are rounded by largest remainder, and every class keeps at least one image.

    Args:
        targets: integer labels (images,); (examples, labels) if all are taken.
        images: how many, or (a float up to 1) a fraction; None for all.
        seed: of the draw.

    Returns:
        Indices in ascending order.

    Raises:
        TypeError: `targets` are no integer labels, or `images` is no number.
        ValueError: there are fewer images than classes, or fewer than `images`.

    Example:
        >>> targets = torch.tensor([0] * 8 + [1] * 4)
        >>> targets[subset(targets, 6, seed=0)].tolist()
        [0, 0, 0, 0, 1, 1]
    """
    dimensions = (1, 2) if images is None else (1,)
    integers = isinstance(targets, Tensor) and not targets.is_floating_point()
    if not integers or targets.ndim not in dimensions:
        raise TypeError(f"subset() needs integer labels (images,) as a tensor, not {targets!r:.60}")
    if not (images is None or isinstance(images, Real)) or isinstance(images, bool):
        raise TypeError(
            f"images={images!r} is a {type(images).__name__}; give a number of training images, or"
            " a fraction up to 1.0"
        )
    if images is None:
        return torch.arange(len(targets))
    labels = targets.numpy()
    counts = np.bincount(labels)  # (classes,)
    size = _subset_size(images, len(labels), int((counts > 0).sum()))
    # Each class is shuffled by itself, and its first images are taken.
    generator = np.random.default_rng(seed)
    members = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(_shares(counts, size))
    ]
    return torch.from_numpy(np.sort(np.concatenate(members)))


def _subset_size(images: int | float, available: int, classes: int) -> int:
    """The number of images that `images` stands for; raises ValueError if it cannot be had."""
    if not math.isfinite(images):
        raise ValueError(
            f"images={images}; give a number of training images, or a fraction up to 1.0"
        )
    # 1.0 is all images, 1 is one image.
    is_fraction = isinstance(images, float) and images <= 1
    size = round(images * available) if is_fraction else int(images)
    if (size != images and not isinstance(images, float)) or size > available:
        raise ValueError(
            f"images={images} but there are {available} training images; ask for at most that"
            " many, or a fraction up to 1.0"
        )
    if size < classes:
        raise ValueError(
            f"images={images} makes {size} training images of {classes} classes; ask for one of"
            " each class at least"
        )
    return size


def _shares(counts: np.ndarray, size: int) -> np.ndarray:
    """How many of `size` images each class gets, by largest remainder; at least one if it has any.

    Args:
        counts: (classes,) images there are.
        size: their sum in the result.
    """
    exact = counts * size / counts.sum()  # (classes,), not whole numbers
    shares = np.where(counts > 0, np.maximum(1, np.floor(exact)), 0).astype(int)
    while shares.sum() < size:  # one more for the class that is furthest below its exact share
        shares[np.where(shares < counts, exact - shares, -np.inf).argmax()] += 1
    while shares.sum() > size:  # one less for the class that is furthest above it
        shares[np.where(shares > 1, shares - exact, -np.inf).argmax()] -= 1
    return shares


def order(targets: Tensor, batch: int, seed: int, *, balanced: bool = False) -> Iterator[Tensor]:
    """Endless batches of indices: in every epoch a new permutation by `seed`.

    Args:
        targets: integer labels (images,); (examples, labels) unless `balanced`.
        batch: indices a batch; at most one epoch.
        seed: of the permutations.
        balanced: draw with replacement instead, each class equally likely.

    Yields:
        Indices (batch,). The last images of an epoch that do not fill a batch are left out of it.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(targets)
    size = min(batch, count)
    if balanced:
        # An image of a class of n has probability proportional to 1 / n.
        chances = (1 / torch.bincount(targets).clamp(min=1).double())[targets]
    while True:
        if balanced:
            epoch = torch.multinomial(chances, count, replacement=True, generator=generator)
        else:
            epoch = torch.randperm(count, generator=generator)
        yield from epoch[: count - count % size].split(size)
