"""Few-shot tasks from labelled images: a data set held in memory, and the sampler that draws episodes from it."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.checks import whole_number
from metalearn.episodes import Episode, Examples
from metalearn.files import Record
from metalearn.progress import progress
from metalearn.tasks.decoding import as_tensor

SEEDS = {"train": 0, "validation": 1, "test": 2}
"""The seeds that this project's commands give to the tasks of each split."""


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory as uint8 `(n, channels, height, width)`, with integer labels `(n,)` and the classes' names.

    Indexed like any torch data set: `[i]` is a float32 image in [0, 1] and its label. `description` is a JSON-able record of where the
    images come from (source, split, seed), which result lines carry. Raises ValueError or TypeError naming what does not fit.

    Example:
        >>> import torch
        >>> images = LabelledImages(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("alpha", "beta"))
        >>> len(images), images[2][1], len(images.classes([1]))
        (4, 1, 2)
    """

    def __init__(self, images: Tensor, labels: Tensor, names: Iterable[str] = (), description: Record | None = None) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise TypeError(f"images must be uint8 (n, channels, height, width), not {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise TypeError(f"labels must be int64 ({len(images)},), one an image, not {labels.dtype} {tuple(labels.shape)}")
        self.images = images
        self.labels = labels
        classes = int(labels.max()) + 1 if len(labels) else 0
        self.names = tuple(names) or tuple(str(i) for i in range(classes))
        self.description: Record = dict(description or {})
        if len(labels) and (int(labels.min()) < 0 or classes > len(self.names)):
            raise ValueError(
                f"labels run from {int(labels.min())} to {classes - 1} but there are {len(self.names)} names; labels count from 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    def classes(self, indices: Iterable[int], **description: Any) -> LabelledImages:
        """The images of these classes alone, relabelled 0, 1, ... in the order given; keywords are added to the description."""
        chosen = [int(i) for i in indices]
        unknown = [i for i in chosen if not 0 <= i < len(self.names)]
        if unknown or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"classes {unknown or chosen} do not exist or repeat: there are {len(self.names)} classes, 0 to {len(self.names) - 1}"
            )
        relabel = torch.full((len(self.names),), -1, dtype=torch.int64)
        relabel[chosen] = torch.arange(len(chosen))
        labels = relabel[self.labels]
        keep = labels >= 0
        return LabelledImages(self.images[keep], labels[keep], [self.names[i] for i in chosen], {**self.description, **description})


class FewShot(Dataset[Episode]):
    """Tasks of `ways` classes with `shots` support and `queries` query images per class, drawn from any data set with integer labels.

    `[i]` is a single-task `Episode`: float32 inputs in [0, 1] of shape (ways * shots, channels, height, width) and (ways * queries, ...),
    labels 0..ways-1 in the order in which the classes were drawn, examples grouped by class. It depends on `(seed, i)` alone (a Philox
    generator keyed by both), so the order of access, worker processes and machines do not matter. Support and query are disjoint and no
    class is drawn twice in a task. `DataLoader(FewShot(...), batch_size=4)` stacks tasks.

    Args:
        dataset: a `LabelledImages`, or any data set of (image or feature tensor or PIL image, integer label) with a length (torchvision's,
            `TensorDataset`, ...). Those are decoded once into memory, transforms included, so a random transform is frozen: uint8 where
            every value is a multiple of 1/255 in [0, 1], else float32 as they are.
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: the length; a task past it raises IndexError.
        seed: names the stream of tasks, 0 to 2**64 - 1. Streams that must not meet need seeds of their own: this project takes
            `SEEDS`, 0 for training, 1 for validation and 2 for test.

    Raises ValueError where there are fewer classes than `ways` or a class has fewer images than `shots + queries`, and TypeError where
    labels are not integers; the message names the class or the item.

    Example:
        >>> import torch
        >>> images = LabelledImages(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(6).repeat_interleave(10))
        >>> tasks = FewShot(images, ways=5, shots=1, queries=3, tasks=100)
        >>> support, query = tasks[7]
        >>> support.inputs.shape, query.targets.tolist()
        (torch.Size([5, 1, 28, 28]), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
    """

    def __init__(self, dataset: Any, ways: int, shots: int, queries: int, tasks: int, seed: int = 0) -> None:
        self.dataset = dataset
        self.ways, self.shots, self.queries, self.tasks = positive(ways=ways, shots=shots, queries=queries, tasks=tasks)
        self.seed = seeded(seed)
        self._inputs, labels, names = _in_memory(dataset)
        classes, sizes = np.unique(labels.numpy(), return_counts=True)
        order = np.argsort(labels.numpy(), kind="stable")
        self._order = None if (order[1:] > order[:-1]).all() else order
        self._sizes, self._starts = sizes, np.cumsum(sizes) - sizes
        self._check([names[c] if 0 <= c < len(names) else str(c) for c in classes])
        self._small = bool((sizes == sizes[0]).all() and sizes[0] <= 128)
        self._labels = [torch.arange(self.ways).repeat_interleave(n) for n in (self.shots, self.queries)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={getattr(self, name)}" for name in ("ways", "shots", "queries", "tasks", "seed"))
        return f"FewShot({type(self.dataset).__name__} of {len(self._sizes)} classes, {counts})"

    def _check(self, names: list[str]) -> None:
        if self.ways > len(names):
            raise ValueError(f"the data set has {len(names)} classes but ways={self.ways}; ask for at most {len(names)} ways")
        needed = self.shots + self.queries
        small = np.flatnonzero(self._sizes < needed)
        if len(small):
            c = small[self._sizes[small].argmin()]
            raise ValueError(
                f"class {names[c]!r} has {self._sizes[c]} images but shots={self.shots} and queries={self.queries} need {needed} "
                f"({len(small)} of {len(names)} classes are too small); ask for fewer shots or queries, or leave such classes out"
            )

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        rows = self._draw(philox(self.seed, position(index, self.tasks)))
        drawn = np.concatenate((rows[:, : self.shots].ravel(), rows[:, self.shots :].ravel()))
        inputs = self._inputs.index_select(0, torch.from_numpy(drawn))
        if inputs.dtype == torch.uint8:
            inputs = torch.div(inputs, 255)
        cut = self.ways * self.shots
        return Episode(Examples(inputs[:cut], self._labels[0].clone()), Examples(inputs[cut:], self._labels[1].clone()))

    def stack(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Episode:
        """The tasks of these indices as one stack on a device: what `[i]` gives, gathered in one go and sent in the images' own dtype."""
        rows = np.stack([self._draw(philox(self.seed, position(index, self.tasks))) for index in indices])
        images = self._inputs.index_select(0, torch.from_numpy(rows.ravel()))
        if torch.device(device).type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        images = images.to(device).view(*rows.shape, *images.shape[1:])
        parts = images[:, :, : self.shots], images[:, :, self.shots :]
        support, query = (torch.div(part, 255) if part.dtype == torch.uint8 else part for part in parts)
        labels = (each.to(device).expand(len(rows), -1).clone() for each in self._labels)
        return Episode(*(Examples(part.flatten(1, 2), each) for part, each in zip((support, query), labels, strict=True)))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of the images of one task (ways, shots + queries), a class a row."""
        classes = rng.choice(len(self._sizes), self.ways, replace=False)
        sizes, needed = self._sizes[classes], self.shots + self.queries
        if self._small:  # ranks of random keys: three times as fast as a draw for each class
            picks = rng.random((self.ways, sizes[0])).argsort(axis=1)[:, :needed]
        else:
            picks = np.stack([rng.choice(size, needed, replace=False) for size in sizes])
        rows = picks + self._starts[classes, None]
        return rows if self._order is None else self._order[rows]

    def settings(self) -> Record:
        """A JSON-able record of the tasks and of the data they come from, for result lines."""
        record = {name: getattr(self, name) for name in ("ways", "shots", "queries", "tasks", "seed")}
        return {**record, "data": getattr(self.dataset, "description", None) or {"source": type(self.dataset).__name__}}


def positive(**numbers: int) -> tuple[int, ...]:
    """The numbers as integers. Raises ValueError, naming it, for one below 1, and TypeError for one that is no integer."""
    return tuple(whole_number(name, number) for name, number in numbers.items())


def seeded(seed: int) -> int:
    """The seed as an integer. Raises ValueError where it does not fit a word of Philox's key."""
    if not 0 <= operator.index(seed) < 2**64:
        raise ValueError(f"seed={seed} must lie in 0 to 2**64 - 1")
    return operator.index(seed)


def position(index: int, tasks: int) -> int:
    """An index, negative ones counted from the end, as a position. Raises IndexError past the last task."""
    if not -tasks <= operator.index(index) < tasks:
        raise IndexError(f"task {index} does not exist: there are {tasks}, 0 to {tasks - 1}")
    return operator.index(index) % tasks


def philox(seed: int, index: int) -> np.random.Generator:
    """NumPy's Philox generator keyed by (seed, index), at its start; each thread has one, so use it up before the next call.

    Example:
        >>> bool(philox(3, 4).random() == np.random.Generator(np.random.Philox(key=[3, 4])).random())
        True
    """
    rng = getattr(_threads, "generator", None)
    if rng is None:
        rng = _threads.generator = np.random.Generator(np.random.Philox(key=0))
    # A new Philox takes five times as long: it asks the system for entropy that the key then replaces.
    key = np.array((seed, index), dtype=np.uint64)
    rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": key},
        "buffer": _ZEROS,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return rng


_threads = threading.local()
_ZEROS = np.zeros(4, dtype=np.uint64)


def _in_memory(dataset: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Any data set -> inputs (n, ...) as uint8 or float32, labels (n,) int64, names by label."""
    if isinstance(dataset, LabelledImages):
        return dataset.images, dataset.labels, dataset.names
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(
            f"{type(dataset).__name__} has no length, so its classes cannot be counted; use a data set with len() and [i]"
        ) from None
    name, inputs, labels = type(dataset).__name__, [], torch.empty(count, dtype=torch.int64)
    with progress(f"reading {name} into memory", count, unit="item") as advance:
        for i in range(count):
            item = dataset[i]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise TypeError(f"item {i} of {name} is not a pair (image, label)")
            inputs.append(_compact(as_tensor(item[0], f"item {i} of {name}")))
            labels[i] = _label(item[1], i, dataset)
            if inputs[i].shape != inputs[0].shape:
                raise ValueError(
                    f"item {i} of {name} has shape {tuple(inputs[i].shape)} but item 0 has {tuple(inputs[0].shape)}; "
                    f"bring all to one size, for example with transform=Resize((84, 84))"
                )
            advance()
    if not inputs:
        raise ValueError(f"{type(dataset).__name__} is empty: there is nothing to draw tasks from")
    if any(image.dtype != torch.uint8 for image in inputs):
        inputs = [image / 255 if image.dtype == torch.uint8 else image for image in inputs]
    return torch.stack(inputs), labels, tuple(str(label) for label in getattr(dataset, "classes", ()))


def _compact(values: Tensor) -> Tensor:
    """uint8 where that loses nothing (256 levels of [0, 1]), else float32."""
    if values.dtype == torch.uint8:
        return values
    values = values.to(torch.float32)
    levels = values.mul(255).round()
    whole = bool(((levels >= 0) & (levels <= 255)).all()) and torch.equal(levels / 255, values)
    return levels.to(torch.uint8) if whole else values


def _label(label: Any, index: int, dataset: Any) -> int:
    value = np.asarray(label)
    if value.dtype.kind not in "iu" or value.size != 1:
        raise TypeError(
            f"the label of item {index} of {type(dataset).__name__} is {label!r}, not an integer; number the classes, "
            f"for example with target_transform"
        )
    return int(value.item())
