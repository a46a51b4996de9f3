"""Minibatches of labelled images as tasks without a support set."""

from __future__ import annotations

import torch

from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record
from metalearn.tasks.keyed_random import philox, position, seeded

ENDLESS = 10**9  # tasks or batches; only those that are requested are drawn


class Minibatches:
    """Minibatches of labelled images under their own labels, which `JointTraining` trains on.

    `[i]` is a task without a support set: `size` different images of all classes. It depends on
    (seed, i) alone.

    Args:
        images: the images to draw from.
        size: images a batch.
        batches: how many there are.
        seed: of the draws.

    Raises:
        ValueError: there are fewer images than `size`.

    Example:
        >>> labels = torch.arange(6).repeat_interleave(10)
        >>> images = LabelledImages(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), labels)
        >>> Minibatches(images, size=32)[0].query.inputs.shape
        torch.Size([32, 1, 28, 28])
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(
        self,
        images: LabelledImages,
        size: int,
        batches: int = ENDLESS,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.size, self.batches = positive(size=size, batches=batches)
        self.seed = seeded(seed)
        if self.size > len(images):
            raise ValueError(
                f"size={size} but there are {len(images)} images; ask for at most {len(images)} a"
                " batch"
            )

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Episode:
        generator = philox(self.seed, position(index, self.batches))
        rows = torch.from_numpy(generator.choice(len(self.images), self.size, replace=False))
        inputs = self.images.take(rows) / 255  # (size, channels, height, width)
        labels = self.images.labels[rows]
        return Episode(Examples(inputs[:0], labels[:0]), Examples(inputs, labels))

    def settings(self) -> Record:
        """A JSON-able record of the batches and of the data they come from."""
        return {
            "batch": self.size,
            "batches": self.batches,
            "seed": self.seed,
            "data": self.images.description,
        }
