"""CIFAR-10 as the experiments on representations use it: fewer images, normalised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import load
from metalearn.network.modes import evaluation_mode
from transfer.finetuning.data import subset

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
AT_ONCE = 250  # images in one forward pass
normalised = v2.Normalize(MEAN, STD)


class Cifar(NamedTuple):
    """Images to train on, to test on, and to compare layers on.

    Attributes:
        train: training images.
        others: the training images that were left out.
        test: test images.
        pictures: (images, 3, height, width), test images in [0, 1] to compare layers on.
        labels: (images,), their classes.
    """

    train: LabelledImages
    others: LabelledImages
    test: LabelledImages
    pictures: Tensor
    labels: Tensor

    def batches(self) -> list[Tensor]:
        """The images to compare layers on, normalised, in an order that does not change."""
        return list(normalised(self.pictures).split(AT_ONCE))


def cifar(root: str | None, images: int, probe: int, size: int = 32) -> Cifar:
    """CIFAR-10 with fewer training images.

    Args:
        root: the folder of the data sets; METALEARN_DATA if None.
        images: how many training images, each class with its share, the same ones for every seed.
        probe: how many test images layers are compared on, each class with its share.
        size: height and width in pixels.
    """
    parts = load("cifar10", root, size=size)
    train = subset(parts.train.labels, images, seed=0)
    left_out = torch.ones(len(parts.train), dtype=torch.bool)
    left_out[train] = False
    chosen = subset(parts.test.labels, probe, seed=0)
    # Folders come class by class, and a network with batch statistics needs mixed batches.
    mixed = torch.randperm(len(parts.test), generator=torch.Generator().manual_seed(0))
    return Cifar(
        taken(parts.train, train),
        taken(parts.train, left_out.nonzero()[:, 0]),
        taken(parts.test, mixed),
        parts.test.images[chosen].float() / 255,
        parts.test.labels[chosen],
    )


def fewer(images: LabelledImages, most: int) -> LabelledImages:
    """At most so many of the images, each class with its share, always the same ones."""
    if len(images) <= most:
        return images
    # Always seed 0: every seed of a comparison sees the same images.
    return taken(images, subset(images.labels, most, seed=0))


def taken(images: LabelledImages, index: Tensor) -> LabelledImages:
    """The images of these positions."""
    return LabelledImages(
        images.images[index],
        images.labels[index],
        images.names,
        {**images.description, "of": len(images)},
    )


def accuracy(model: nn.Module, images: LabelledImages) -> float:
    """The share of images that a network classifies correctly."""
    right = 0
    pixels = images.images.split(AT_ONCE)
    with evaluation_mode([model]), torch.no_grad():
        for part, labels in zip(pixels, images.labels.split(AT_ONCE), strict=True):
            predicted = model(normalised(part.float() / 255)).argmax(1)
            right += int((predicted == labels).sum())
    return right / len(images)
