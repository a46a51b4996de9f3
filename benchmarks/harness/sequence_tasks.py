"""The sequence tasks of the benchmark of frozen transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from metalearn.data.labelled_sequences import Sequences
from metalearn.data.labelled_sets import load
from metalearn.data.sequences import bit_memory, bit_xor, cut, joined, listops, patches
from metalearn.runtime.checks import whole_number

Parts = tuple[Sequences, Sequences, Sequences]
"""For training, validation and test."""


@dataclass(frozen=True)
class Amount:
    """How many sequences, and the folder of the data sets.

    Attributes:
        train: training sequences, at most.
        test: sequences for validation, and as many for the test.
        root: the folder of the data sets; None for METALEARN_DATA.
    """

    train: int
    test: int
    root: str | None = None

    def __post_init__(self) -> None:
        whole_number("train", self.train)
        whole_number("test", self.test)


@dataclass(frozen=True)
class Task:
    """A task of the table.

    Attributes:
        steps: of the experiment for two cores, or of that for a GPU if it needs one.
        guess: the accuracy without learning; None for that of the most frequent test label.
        parts: the sequences, given how many.
        augment: from a batch of sequences to another, in training.
    """

    steps: int
    guess: float | None
    parts: Callable[[Amount], Parts]
    augment: Callable[[Tensor], Tensor] | None = None

    def chance(self, test: Sequences) -> float:
        """The accuracy without learning anything."""
        if self.guess is not None:
            return self.guess
        return float(torch.bincount(test.targets.flatten()).max() / test.targets.numel())


def drawn(amount: Amount, draw: Callable[[int, int], Sequences]) -> Parts:
    """Generated sequences, each part from a seed of its own."""
    counts = (amount.train, amount.test, amount.test)
    train, validation, test = (draw(count, seed) for seed, count in enumerate(counts))
    return train, validation, test


def short_memory(amount: Amount) -> Parts:
    """Bit memory with 5 strings of 40 bits, 24 tokens."""
    return drawn(amount, lambda count, seed: bit_memory(count, bits=40, patch=10, seed=seed))


def long_memory(amount: Amount) -> Parts:
    """The bit memory of the paper: 5 strings of 1,000 bits, 120 tokens."""
    return drawn(amount, lambda count, seed: bit_memory(count, seed=seed))


def xor(amount: Amount) -> Parts:
    """Two strings of 5 bits."""
    return drawn(amount, lambda count, seed: bit_xor(count, seed=seed))


def lists(amount: Amount, shortest: int, longest: int) -> Parts:
    """ListOps with strings of some lengths."""
    return drawn(
        amount,
        lambda count, seed: listops(count, shortest=shortest, longest=longest, seed=seed),
    )


def images(amount: Amount, name: str, size: int, *, grey: bool = False) -> Parts:
    """Patches of images; the validation images are of the training set."""
    parts = load(name, amount.root)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(parts.train), generator=generator)
    train = patches(parts.train, size, grey=grey)
    test = patches(parts.test, size, grey=grey)
    chosen = torch.randperm(len(test), generator=generator)[: amount.test]
    return (
        train.at(order[amount.test : amount.test + amount.train]),
        train.at(order[: amount.test]),
        test.at(chosen),
    )


def augmented(tokens: Tensor) -> Tensor:
    """Lu et al.'s augmentation of CIFAR-10: crop with a margin of 4, flip, rotate by up to 20°."""
    change = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(20)]
    )
    # Each image by itself: a transform of a batch changes all alike.
    changed = [change(image) for image in joined(tokens, 4, 3)]
    return cut(torch.stack(changed), 4)


TASKS: dict[str, Task] = {
    "memory": Task(800, 0.75, short_memory),
    "xor": Task(400, 0.5, xor),
    "mnist": Task(600, 0.1, lambda amount: images(amount, "mnist", 4)),
    "listops-short": Task(1000, None, lambda amount: lists(amount, 10, 64)),
    "long-memory": Task(10_000, 0.75, long_memory),
    "cifar10": Task(10_000, 0.1, lambda amount: images(amount, "cifar10", 4), augmented),
    "listops": Task(10_000, None, lambda amount: lists(amount, 100, 512)),
    "lra": Task(10_000, 0.1, lambda amount: images(amount, "cifar10", 1, grey=True)),
}
