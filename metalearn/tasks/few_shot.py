"""Few-shot tasks from labelled images: a data set held in memory, and the sampler that draws episodes from it."""

from __future__ import annotations

import logging
import operator
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.checks import positive, sequence, whole_number
from metalearn.episodes import Episode, Examples
from metalearn.files import Record
from metalearn.progress import progress
from metalearn.tasks.decoding import as_tensor

log = logging.getLogger("metalearn")
SEEDS = {"train": 0, "validation": 1, "test": 2}
"""The seeds that this project's commands give to the tasks of each split."""


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images in memory as uint8 `(n, channels, height, width)`, with integer labels `(n,)` and the classes' names.

    Indexed like any torch data set: `[i]` is a float32 image in [0, 1] and its label. `description` is a JSON-able record of where the
    images come from (source, split, seed), which result lines carry. Raises ValueError or TypeError naming what does not fit.

    Without names, labels of any kind are numbered 0, 1, ... in their order (see `number_labels`): they become the names, and
    `description["labels"]` has the number of each. With names, labels count from 0 and say which name.

    Example:
        >>> import torch
        >>> images = LabelledImages(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("alpha", "beta"))
        >>> len(images), images[2][1], len(images.classes([1]))
        (4, 1, 2)
        >>> LabelledImages(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), ["dog", "cat", "dog"]).labels
        tensor([1, 0, 1])
    """

    def __init__(self, images: Tensor, labels: Any, names: Iterable[str] = (), description: Record | None = None) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
            kind = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise TypeError(f"images must be a tensor of uint8 (n, channels, height, width), not {kind}")
        self.names = tuple(sequence("names", names, "['cat', 'dog']"))
        self.description: Record = dict(description or {})
        if not self.names:
            labels, classes, record = number_labels(labels, "the images")
            self.names = tuple(classes)
            self.description |= record
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            kind = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be int64 ({len(images)},), one an image, not {kind}; without names they may be of any kind")
        self.images = images
        self.labels = labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())} but there are {len(self.names)} names; labels count from 0"
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
        dataset: a `LabelledImages`, or any data set of (image or feature tensor or PIL image, label) with a length (torchvision's,
            `TensorDataset`, ...). Those are decoded once into memory, transforms included, so a random transform is frozen: uint8 where
            every value is a multiple of 1/255 in [0, 1], else float32 as they are. Labels may be of any kind (see `number_labels`).
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: the length; a task past it raises IndexError.
        seed: names the stream of tasks, 0 to 2**64 - 1. Streams that must not meet need seeds of their own: this project takes
            `SEEDS`, 0 for training, 1 for validation and 2 for test.

    Raises ValueError where there are fewer classes than `ways` or a class has fewer images than `shots + queries`, and TypeError where
    a label does not name a class; the message names the class or the item.

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
        self._inputs, labels, names, self._numbered = _in_memory(dataset)
        classes, sizes = np.unique(labels.numpy(), return_counts=True)
        present = set(classes.tolist())
        self._absent = [name for number, name in enumerate(names) if number not in present]
        order = np.argsort(labels.numpy(), kind="stable")
        self._order = None if (order[1:] > order[:-1]).all() else order
        self._sizes, self._starts = sizes, np.cumsum(sizes) - sizes
        self._check([names[c] for c in classes])
        self._small = bool((sizes == sizes[0]).all() and sizes[0] <= 128)
        self._labels = [torch.arange(self.ways).repeat_interleave(n) for n in (self.shots, self.queries)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={getattr(self, name)}" for name in ("ways", "shots", "queries", "tasks", "seed"))
        return f"FewShot({type(self.dataset).__name__} of {len(self._sizes)} classes, {counts})"

    def _check(self, names: list[str]) -> None:
        if self.ways > len(names):
            absent = f" with images ({', '.join(map(repr, self._absent[:5]))} {'has' if len(self._absent) == 1 else 'have'} none)"
            raise ValueError(
                f"the data set has {len(names)} classes{absent if self._absent else ''} but ways={self.ways}; "
                f"ask for at most {len(names)} ways{_divided(self.dataset)}"
            )
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
        if not len(indices):
            raise ValueError("stack([]) has no task; give the numbers of one task at least")
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
        data = getattr(self.dataset, "description", None) or {"source": type(self.dataset).__name__}
        absent = {"absent_classes": self._absent} if self._absent else {}
        return {**record, "data": {**data, **self._numbered, **absent}}


def _divided(dataset: Any) -> str:
    """How the classes of a folder were divided, and how to divide them otherwise."""
    description = getattr(dataset, "description", None) or {}
    if "classes_per_split" not in description:
        return ""
    counts: dict[str, int] = description["classes_per_split"]
    by = description["classes_split_by"]
    parts = ", ".join(f"{count} for {split}" for split, count in counts.items())
    shares = "/".join(f"{100 * share:.3g}" if share < 1 else str(share) for share in description.get("shares", ()))
    how = f"{shares} by seed" if by == "seed" else f"by {by}"
    return (
        f". The {sum(counts.values())} classes of {description.get('folder', 'the folder')} are divided {how}: {parts}. "
        "Divide them otherwise with --split-ratio 1,1,1 or --splits FILE (image_folder's splits=), or make folders train, val and test"
    )


def number_labels(labels: Any, source: str) -> tuple[Tensor, list[str], Record]:
    """Labels of any kind -> class numbers (n,) int64 from 0, the classes' names in order, and a record of which label became which number.

    Whole numbers (also negative, with gaps, as floats or booleans), strings and tensors of one element are taken. Classes are numbered in
    the order of their labels. The record is empty where labels are 0, 1, ... already.

    Raises TypeError, naming the item, for a label that does not name one class.

    Example:
        >>> number_labels([2, 1, 2], "images")
        (tensor([1, 0, 1]), ['1', '2'], {'labels': {'1': 0, '2': 1}})
    """
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    values = [_label(label, i, source) for i, label in enumerate(sequence("labels", labels, "[0, 0, 1]"))]
    kinds = sorted({type(value).__name__ for value in values})
    if len(kinds) > 1:
        raise TypeError(f"the labels of {source} mix {' and '.join(kinds)}; make all of them numbers or all strings")
    classes = sorted(set(values))
    numbers = {value: number for number, value in enumerate(classes)}
    names = [str(value) for value in classes]
    record = {} if classes == list(range(len(classes))) else {"labels": dict(zip(names, numbers.values(), strict=True))}
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
        f"the label of item {index} of {source} is {label!r}, not an integer or a string; number the classes, "
        f"for example with target_transform"
    )


def seeded(seed: int) -> int:
    """The seed as an integer. Raises ValueError where it does not fit a word of Philox's key, TypeError where it is no whole number."""
    if not 0 <= whole_number("seed", seed, least=None) < 2**64:
        raise ValueError(f"seed={seed} must lie in 0 to 2**64 - 1")
    return operator.index(seed)


def position(index: int, tasks: int) -> int:
    """An index, negative ones counted from the end, as a position. Raises IndexError past the last task."""
    if not hasattr(index, "__index__"):
        raise TypeError(f"task {index!r} is not a whole number; take one task by its number, or several with stack([0, 1, 2])")
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


def _in_memory(dataset: Any) -> tuple[Tensor, Tensor, tuple[str, ...], Record]:
    """Any data set -> inputs (n, ...) as uint8 or float32, labels (n,) int64 from 0, names by label, and which label became which."""
    if isinstance(dataset, LabelledImages):
        return dataset.images, dataset.labels, dataset.names, {}
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(
            f"{type(dataset).__name__} has no length, so its classes cannot be counted; use a data set with len() and [i]"
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


def in_memory_together(*datasets: Any) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...], Record]:
    """Data sets that share their classes (training and test) -> inputs and labels of each, the classes' names, and the record of labels.

    A class has one number in all of them, that of the first data set, also where another has no image of some class.
    """
    parts = [_in_memory(dataset) for dataset in datasets]
    names = parts[0][2]
    for _, _, others, _ in parts:
        if others == names:
            continue
        repeated = [name for listing in (names, others) for name, count in Counter(listing).items() if count > 1]
        if repeated:
            raise ValueError(f"two classes are named {repeated[0]!r}, so the data sets cannot be matched by name; name them apart")
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
    """The inputs in one shape: grey images (1, height, width) among colour ones are repeated to 3 channels, which is exact."""
    grey = [image for image in inputs if image.dim() == 3 and len(image) == 1]
    if grey and any(image.dim() == 3 and len(image) == 3 for image in inputs):
        log.warning("%d grey images of %s are repeated to 3 channels, as the others have", len(grey), name)
        inputs = [image.expand(3, -1, -1) if image.dim() == 3 and len(image) == 1 else image for image in inputs]
    for i, image in enumerate(inputs):
        if image.shape != inputs[0].shape:
            raise ValueError(
                f"item {i} of {name} has shape {tuple(image.shape)} but item 0 has {tuple(inputs[0].shape)}; "
                f"bring all to one size, for example with transform=Resize((84, 84))"
            )
    return inputs


def _names(dataset: Any, classes: list[str]) -> tuple[str, ...]:
    """The names of the classes: those of the data set where labels count in its `classes`, as torchvision's do."""
    named = [str(name) for name in getattr(dataset, "classes", ())]
    return tuple(named[int(label)] if label.isdecimal() and int(label) < len(named) else label for label in classes)


def _compact(values: Tensor) -> Tensor:
    """uint8 where that loses nothing (256 levels of [0, 1]), else float32."""
    if values.dtype == torch.uint8:
        return values
    values = values.to(torch.float32)
    levels = values.mul(255).round()
    whole = bool(((levels >= 0) & (levels <= 255)).all()) and torch.equal(levels / 255, values)
    return levels.to(torch.uint8) if whole else values
