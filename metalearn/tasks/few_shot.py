"""Few-shot tasks from labelled images: a data set held in memory, and the sampler that draws
episodes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from metalearn.data.images import in_memory
from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record
from metalearn.tasks.keyed_random import philox, position, seeded

SEEDS = {"train": 0, "validation": 1, "test": 2}
"""The seeds that this project's commands give to the tasks of each split."""


class FewShot(Dataset[Episode]):
    """Tasks of `ways` classes with `shots` support and `queries` query images per class, drawn from
    any data set with integer labels.

    `[i]` is a single-task `Episode`: float32 inputs in [0, 1] of shape (ways * shots, channels,
    height, width) and (ways * queries, ...), labels 0..ways-1 in the order in which the classes
    were drawn, examples grouped by class. It depends on `(seed, i)` alone (a Philox generator keyed
    by both), so the order of access, worker processes and machines do not matter. Support and query
    are disjoint and no class is drawn twice in a task. `DataLoader(FewShot(...), batch_size=4)`
    stacks tasks.

    Args:
        dataset: a `LabelledImages`, or any data set of (image or feature tensor or PIL image,
            label) with a length (torchvision's, `TensorDataset`, ...). Those are decoded once into
            memory, transforms included, so a random transform is frozen: uint8 where every value is
            a multiple of 1/255 in [0, 1], else float32 as they are. Labels may be of any kind (see
            `number_labels`).
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: the length; a task past it raises IndexError.
        seed: names the stream of tasks, 0 to 2**64 - 1. Streams that must not meet need seeds of
            their own: this project takes `SEEDS`, 0 for training, 1 for validation and 2 for test.

    Raises ValueError where there are fewer classes than `ways` or a class has fewer images than
    `shots + queries`, and TypeError where a label does not name a class; the message names the
    class or the item.

    Example:
        >>> from metalearn.data.images import LabelledImages
        >>> import torch
        >>> images = LabelledImages(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(6).repeat_interleave(10))
        >>> tasks = FewShot(images, ways=5, shots=1, queries=3, tasks=100)
        >>> support, query = tasks[7]
        >>> support.inputs.shape, query.targets.tolist()
        (torch.Size([5, 1, 28, 28]), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(
        self, dataset: Any, ways: int, shots: int, queries: int, tasks: int, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.ways, self.shots, self.queries, self.tasks = positive(
            ways=ways, shots=shots, queries=queries, tasks=tasks
        )
        self.seed = seeded(seed)
        self._inputs, labels, names, self._numbered = in_memory(dataset)
        classes, sizes = np.unique(labels.numpy(), return_counts=True)
        present = set(classes.tolist())
        self._absent = [name for number, name in enumerate(names) if number not in present]
        order = np.argsort(labels.numpy(), kind="stable")
        self._order = None if (order[1:] > order[:-1]).all() else order
        self._sizes, self._starts = sizes, np.cumsum(sizes) - sizes
        self._check([names[c] for c in classes])
        self._small = bool((sizes == sizes[0]).all() and sizes[0] <= 128)
        self._labels = [
            torch.arange(self.ways).repeat_interleave(n) for n in (self.shots, self.queries)
        ]

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{name}={getattr(self, name)}"
            for name in ("ways", "shots", "queries", "tasks", "seed")
        )
        return f"FewShot({type(self.dataset).__name__} of {len(self._sizes)} classes, {counts})"

    def _check(self, names: list[str]) -> None:
        if self.ways > len(names):
            absent = (
                f" with images ({', '.join(map(repr, self._absent[:5]))}"
                f" {'has' if len(self._absent) == 1 else 'have'} none)"
            )
            raise ValueError(
                f"the data set has {len(names)} classes{absent if self._absent else ''} but"
                f" ways={self.ways}; ask for at most {len(names)} ways{_divided(self.dataset)}"
            )
        needed = self.shots + self.queries
        small = np.flatnonzero(self._sizes < needed)
        if len(small):
            c = small[self._sizes[small].argmin()]
            raise ValueError(
                f"class {names[c]!r} has {self._sizes[c]} images but shots={self.shots} and"
                f" queries={self.queries} need {needed} ({len(small)} of {len(names)} classes are"
                " too small); ask for fewer shots or queries, or leave such classes out"
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
        return Episode(
            Examples(inputs[:cut], self._labels[0].clone()),
            Examples(inputs[cut:], self._labels[1].clone()),
        )

    def stack(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Episode:
        """The tasks of these indices as one stack on a device: what `[i]` gives, gathered in one go
        and sent in the images' own dtype.
        """
        if not len(indices):
            raise ValueError("stack([]) has no task; give the numbers of one task at least")
        rows = np.stack(
            [self._draw(philox(self.seed, position(index, self.tasks))) for index in indices]
        )
        images = self._inputs.index_select(0, torch.from_numpy(rows.ravel()))
        if torch.device(device).type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        images = images.to(device).view(*rows.shape, *images.shape[1:])
        parts = images[:, :, : self.shots], images[:, :, self.shots :]
        support, query = (
            torch.div(part, 255) if part.dtype == torch.uint8 else part for part in parts
        )
        labels = (each.to(device).expand(len(rows), -1).clone() for each in self._labels)
        return Episode(
            *(
                Examples(part.flatten(1, 2), each)
                for part, each in zip((support, query), labels, strict=True)
            )
        )

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
        record = {
            name: getattr(self, name) for name in ("ways", "shots", "queries", "tasks", "seed")
        }
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
    shares = "/".join(
        f"{100 * share:.3g}" if share < 1 else str(share) for share in description.get("shares", ())
    )
    how = f"{shares} by seed" if by == "seed" else f"by {by}"
    return (
        f". The {sum(counts.values())} classes of {description.get('folder', 'the folder')} are"
        f" divided {how}: {parts}. Divide them otherwise with --split-ratio 1,1,1 or --splits FILE"
        " (image_folder's splits=), or make folders train, val and test"
    )
