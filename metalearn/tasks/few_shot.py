"""Few-shot tasks: a labelled data set in memory, and the sampler that draws episodes from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.data.decoding import as_tensor
from metalearn.data.image_files import ImageFiles
from metalearn.data.images import first_image, in_memory
from metalearn.data.items import KEYS
from metalearn.data.normalization import Normalization
from metalearn.data.on_demand import OnDemand
from metalearn.episodes import Episode, Examples, stack
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record
from metalearn.runtime.random_state import seeded as seeded_globally
from metalearn.tasks.augmentation import (
    Augmentation,
    apply,
    check_not_random,
    checked_transform,
    described,
    naming_transform,
)
from metalearn.tasks.class_counts import check_classes, check_examples
from metalearn.tasks.keyed_random import philox, position, seeded
from metalearn.tasks.task_sizes import Count, TaskSizes, task_sizes

SEEDS = {"train": 0, "validation": 1, "test": 2}
"""The seeds that this project's commands give to the tasks of each split."""


class FewShot(Dataset[Episode]):
    """Few-shot classification tasks, drawn from any data set with labels.

    `[i]` is a single-task `Episode`: float32 inputs in [0, 1] of shape (ways * shots, channels,
    height, width) and (ways * queries, ...), labels 0..ways-1 in the order in which the classes
    were drawn, examples grouped by class. It depends on `(seed, i)` alone (a Philox generator keyed
    by both), so the order of access, worker processes and machines do not matter. Support and query
    are disjoint and no class is drawn twice in a task. `DataLoader(FewShot(...), batch_size=4)`
    stacks tasks.

    Args:
        dataset: a `LabelledImages`, or any data set of (image or feature tensor or PIL image,
            label) with a length (torchvision's, `TensorDataset`, `Subset`, `ConcatDataset`, Hugging
            Face's `datasets`, ...), which is read once into memory. Its own transforms are then
            applied once, so a random one is frozen: pass it as `augment`. Inputs are stored as
            uint8 if every value is a multiple of 1/255 in [0, 1], else as float32. Integers with
            fewer than three dimensions, such as token ids (tokens,), stay integers. Labels may be
            of any kind, also strings and numbers with gaps (see `number_labels`).
        ways: classes per task; (smallest, largest) draws their number for each task, such as
            `ways=(5, 20)`.
        shots: support examples per class, or likewise (smallest, largest).
        queries: query examples per class, or likewise (smallest, largest).
        tasks: the length; a task past it raises IndexError.
        seed: names the stream of tasks, 0 to 2**64 - 1. Streams that must not overlap need
            different seeds: this project takes `SEEDS`, 0 for training, 1 for validation and 2 for
            test.
        sizes: a rule for the sizes of tasks in place of ways, shots and queries, such as
            `MetaDatasetSizes()`.
        transform: preprocessing of every image, without random numbers, such as `v2.Resize((84,
            84))`. It gets an image as the data set has it (of a `LabelledImages` a uint8 tensor),
            and runs once an image if the data set is in memory.
        augment: a random transform of every image of a task, support and query, such as
            `v2.Compose([v2.RandomCrop(84, padding=8), v2.RandomHorizontalFlip()])`. It gets a
            tensor (channels, height, width), uint8 if the images are stored so. It is drawn anew
            for each task and depends on `(seed, i)` alone, also in the workers of a `DataLoader`.
            Tasks for testing usually have none.
        normalize: "imagenet", or a pair (mean, std) of numbers by channel, which is applied last.
            Pretrained weights expect it, unless the network normalises its images itself (as that
            of an `Experiment` does).
        keys: of the image and the label, if the items are dictionaries.
        in_memory: False reads the images of a task when it is drawn, for data sets that do not fit
            in memory. The data set's own random transforms are then drawn anew, too, from
            `(seed, i)` alone. By default only `ImageFiles` are read so, which
            `image_folder(in_memory=False)` and its like return.

    Raises:
        ValueError: if there are fewer classes than `ways`, or a class has fewer images than
            `shots + queries`. The message names the class. If a transform returns images of
            different shapes, or NaN. The message names the task, the item and the transform.
        TypeError: if a label does not name a class. The message names the item.
        KeyError: if items are dictionaries without the `keys`. The message lists their keys.

    Example:
        >>> from metalearn.data.glyphs import glyphs
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=3, tasks=100)
        >>> support, query = tasks[7]
        >>> support.inputs.shape, query.targets.tolist()
        (torch.Size([5, 1, 28, 28]), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
        >>> from torchvision.transforms import v2
        >>> crops = v2.RandomCrop(28, padding=4)
        >>> augmented = FewShot(glyphs("test"), 5, 1, 3, tasks=100, augment=crops)
        >>> torch.equal(augmented[7].support.inputs, augmented[7].support.inputs)
        True
        >>> varied = FewShot(glyphs("test"), ways=(2, 9), shots=(1, 3), queries=2, tasks=100)
        >>> [len(varied[i].query.targets) for i in range(3)]
        [4, 18, 12]
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(
        self,
        dataset: Any,
        ways: Count | None = None,
        shots: Count | None = None,
        queries: Count | None = None,
        tasks: int | None = None,
        seed: int = 0,
        *,
        sizes: TaskSizes | None = None,
        transform: Any = None,
        augment: Any = None,
        normalize: Any = None,
        keys: tuple[str, str] = KEYS,
        in_memory: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.sizes = self._sizes_of({"ways": ways, "shots": shots, "queries": queries}, sizes)
        (self.tasks,) = positive(tasks=tasks)
        self.seed = seeded(seed)
        self.transform = transform
        self.augment = None if augment is None else Augmentation(augment)
        self.normalize = Normalization.of(normalize)
        if in_memory is None:
            in_memory = not isinstance(dataset, ImageFiles)
        labels, names = self._read(keys, stored=in_memory)
        classes, counts = np.unique(labels.numpy(), return_counts=True)
        present = set(classes.tolist())
        self._absent = [name for number, name in enumerate(names) if number not in present]
        # Rows by class: class c has sizes[c] rows from starts[c] on.
        self._sizes = counts
        self._starts = np.cumsum(counts) - counts
        order = np.argsort(labels.numpy(), kind="stable")
        in_order = (order[1:] > order[:-1]).all()
        self._order = None if in_order else order
        self._check([names[c] for c in classes])
        if self.sizes is not None:
            return
        # Equally many images a class, and few, allow a faster draw (changing this changes tasks).
        self._small = bool((counts == counts[0]).all() and counts[0] <= 128)
        self._labels = [
            torch.arange(self.ways).repeat_interleave(n) for n in (self.shots, self.queries)
        ]

    def _sizes_of(self, counts: Record, sizes: TaskSizes | None) -> TaskSizes | None:
        """Keep the counts, and return the rule for sizes; None if all tasks have one size."""
        given = [name for name, count in counts.items() if count is not None]
        if sizes is not None and given:
            raise TypeError(
                f"{', '.join(given)} and sizes={sizes} both set the sizes of tasks; give one of"
                " them"
            )
        missing = ", ".join(f"{name}=None" for name in counts if name not in given)
        if sizes is None and missing:
            raise TypeError(
                f"{missing}: give FewShot ways, shots and queries, or sizes=MetaDatasetSizes()"
            )
        if sizes is None:
            sizes = task_sizes(counts)
        if sizes is None:
            counts = dict(zip(counts, positive(**counts), strict=True))
        self.ways, self.shots, self.queries = counts.values()
        return sizes

    def _read(self, keys: tuple[str, str], *, stored: bool) -> tuple[Tensor, tuple[str, ...]]:
        """Read the data set, or its labels alone -> the labels and the names of the classes."""
        convert = as_tensor
        if self.transform is not None:
            convert = partial(apply, checked_transform("transform", self.transform))
            check_not_random(self.transform, first_image(self.dataset, keys))
        self._inputs: Tensor | None = None
        self._files: OnDemand | None = None
        if stored:
            with naming_transform(self.transform):
                read = in_memory(self.dataset, keys, convert)
            self._inputs, labels, names, self._numbered = read
            return labels, names
        self._files = OnDemand(self.dataset, keys, convert)
        self._numbered = self._files.record
        return self._files.labels, self._files.names

    @property
    def draws_globally(self) -> bool:
        """Whether drawing a task uses the process's global random generators for a while."""
        return self.augment is not None or (self._files is not None and self._files.may_draw)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value}" for name, value in self._numbers().items())
        return f"FewShot({type(self.dataset).__name__} of {len(self._sizes)} classes, {numbers})"

    def _numbers(self) -> Record:
        """The numbers that it was built with."""
        numbers = {"tasks": self.tasks, "seed": self.seed}
        if self.sizes is not None:
            return {**self.sizes.settings(), **numbers}
        return {"ways": self.ways, "shots": self.shots, "queries": self.queries, **numbers}

    @property
    def sizes_vary(self) -> bool:
        """Whether tasks may differ in size, so that stacks of them are padded."""
        return self.sizes is not None

    def _check(self, names: list[str]) -> None:
        """Raise ValueError if there are too few classes, or too few images of one."""
        if self.sizes is None:
            ways, needed = self.ways, self.shots + self.queries
            asked = f"shots={self.shots} and queries={self.queries}"
        else:
            ways, needed = self.sizes.needs()
            asked = f"tasks of {self.sizes}"
        check_classes(self.dataset, names, self._absent, ways, f"ways={self.ways or ways}")
        check_examples(names, self._sizes, needed, asked)

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        number = position(index, self.tasks)
        rng = philox(self.seed, number)
        if self.sizes is not None:
            return self._of_drawn_size(self.sizes, number, rng)
        rows = self._draw(rng)
        # (ways, shots + queries) -> the support rows class by class, then the query rows.
        in_order = np.concatenate((rows[:, : self.shots].ravel(), rows[:, self.shots :].ravel()))
        inputs = self._finished(self._images(in_order, number, rng))
        cut = self.ways * self.shots
        return Episode(
            Examples(inputs[:cut], self._labels[0].clone()),
            Examples(inputs[cut:], self._labels[1].clone()),
        )

    def _of_drawn_size(self, sizes: TaskSizes, number: int, rng: np.random.Generator) -> Episode:
        """A task whose numbers of classes and examples are drawn, too."""
        size = sizes.draw(rng, self._sizes)
        support = []
        query = []
        for c, shots, queries in zip(*size, strict=True):
            rows = rng.choice(self._sizes[c], shots + queries, replace=False) + self._starts[c]
            support.append(rows[:shots])
            query.append(rows[shots:])
        in_order = np.concatenate(support + query)
        if self._order is not None:
            in_order = self._order[in_order]
        inputs = self._finished(self._images(in_order, number, rng))
        labels = torch.arange(len(size.classes))
        cut = int(size.shots.sum())
        return Episode(
            Examples(inputs[:cut], labels.repeat_interleave(torch.from_numpy(size.shots))),
            Examples(inputs[cut:], labels.repeat_interleave(torch.from_numpy(size.queries))),
        )

    def _images(self, rows: np.ndarray, number: int, rng: np.random.Generator) -> Tensor:
        """The images of a task in their stored dtype, after its random transforms."""
        if self._inputs is not None:
            images = self._inputs.index_select(0, torch.from_numpy(rows))
        else:
            assert self._files is not None
            # `rng` stays where it is, so `augment` draws what it draws of images in memory.
            with self._seeded(number), naming_transform(self.transform, f"task {number}: "):
                images = self._files.take(rows.tolist())
        if self.augment is None:
            return images
        source = type(self.dataset).__name__
        return self.augment(images, rng, lambda i: f"item {rows[i]} of {source} in task {number}")

    def _seeded(self, number: int) -> AbstractContextManager[None]:
        """Seed the global generators, from which the data set's own transforms draw, for a task."""
        if self._files is None or not self._files.may_draw:
            return nullcontext()
        return seeded_globally(zlib.crc32(np.array((self.seed, number), np.uint64).tobytes()))

    def _finished(self, images: Tensor) -> Tensor:
        """Images (..., channels, height, width) as floating-point values, normalised."""
        values = torch.div(images, 255) if images.dtype == torch.uint8 else images
        return values if self.normalize is None else self.normalize(values)

    def stack(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Episode:
        """Several tasks as one stack on a device.

        It equals the stack of `[i]` for each index, but gathers all images at once and sends them
        in their stored dtype. Tasks of unequal size are padded (see `metalearn.episodes.stack`).

        Args:
            indices: the numbers of the tasks, at least one.
            device: where the stack goes.
        """
        if not len(indices):
            raise ValueError("stack([]) has no task; give the number of at least one task")
        # Each task has draws of its own, or files to read.
        if self.draws_globally or self.sizes_vary or self._inputs is None:
            tasks = [self[index] for index in indices]
            return stack(tasks, pad=self.sizes_vary, indices=indices).to(device)
        rows = np.stack(
            [self._draw(philox(self.seed, position(index, self.tasks))) for index in indices]
        )
        images = self._inputs.index_select(0, torch.from_numpy(rows.ravel()))
        if torch.device(device).type == "cuda":
            # Pinned memory lets the copy overlap with computing.
            images = images.pin_memory().to(device, non_blocking=True)
        # (tasks, ways, shots + queries, channels, height, width)
        images = images.to(device).view(*rows.shape, *images.shape[1:])
        support = self._finished(images[:, :, : self.shots])
        query = self._finished(images[:, :, self.shots :])
        labels = [each.to(device).expand(len(rows), -1).clone() for each in self._labels]
        return Episode(
            Examples(support.flatten(1, 2), labels[0]),  # (tasks, ways * shots, ...)
            Examples(query.flatten(1, 2), labels[1]),  # (tasks, ways * queries, ...)
        )

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of the images of one task (ways, shots + queries), one class a row."""
        classes = rng.choice(len(self._sizes), self.ways, replace=False)
        sizes = self._sizes[classes]
        needed = self.shots + self.queries
        if self._small:  # the order of random keys: three times as fast as a draw for each class
            picks = rng.random((self.ways, sizes[0])).argsort(axis=1)[:, :needed]
        else:
            picks = np.stack([rng.choice(size, needed, replace=False) for size in sizes])
        rows = picks + self._starts[classes, None]  # (ways, shots + queries)
        return rows if self._order is None else self._order[rows]

    def settings(self) -> Record:
        """A JSON-able record of the tasks and of their data, for result lines."""
        data = getattr(self.dataset, "description", None) or {"source": type(self.dataset).__name__}
        data = {**data, **self._numbered}
        if self._absent:
            data["absent_classes"] = self._absent
        return {**self._numbers(), **self._transforms(), "data": data}

    def _transforms(self) -> Record:
        """Its transforms in words; nothing for those that are not set, as in earlier records."""
        record: Record = {}
        if self.transform is not None:
            record["transform"] = described(self.transform)
        if self.augment is not None:
            record["augment"] = described(self.augment.transform)
        if self.normalize is not None:
            record["normalize"] = str(self.normalize)
        return record
