"""The parts of a labelled set: to train on, to choose by and to test on, of the same classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.functional import resize, rgb_to_grayscale

from .images import LabelledImages


class Split(NamedTuple):
    """Images to train on, to choose by, and to test on, of the same classes.

    `validation` is None if the set has no such part.
    """

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages


def divided(images: LabelledImages, held_out: float, seed: int = 0) -> Split:
    """Divide the images of each class into training and test.

    Args:
        images: the images.
        held_out: the share of each class to test on; at least one image.
        seed: of the division.

    Raises:
        ValueError: if a class has a single image, or `held_out` is not between 0 and 1.

    Example:
        >>> from metalearn.data.glyphs import glyphs
        >>> parts = divided(glyphs("test", classes=3, drawers=10), 0.2)
        >>> len(parts.train), len(parts.test)
        (24, 6)
    """
    if not 0 < held_out < 1:
        raise ValueError(
            f"held_out={held_out} must lie between 0 and 1: it is the share of each class that is"
            " tested on"
        )
    labels = images.labels.numpy()
    generator = np.random.default_rng(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(images.names):
        members = np.flatnonzero(labels == label)  # rows of this class
        if len(members) == 1:
            raise ValueError(
                f"class {name!r} has one image, which cannot be both trained and tested on; add"
                " more"
            )
        count = max(1, round(held_out * len(members)))
        is_test[generator.permutation(members)[:count]] = True

    def part(rows: np.ndarray, split: str) -> LabelledImages:
        chosen = torch.from_numpy(np.flatnonzero(rows))
        record = {"split": split, "held_out": held_out, "divided_by_seed": seed}
        return LabelledImages(
            images.images[chosen],
            images.labels[chosen],
            images.names,
            {**images.description, **record},
        )

    return Split(part(~is_test, "train"), None, part(is_test, "test"))


def sized(images: LabelledImages, size: int | None, channels: int | None) -> LabelledImages:
    """Bring images to a size and a number of channels.

    Args:
        images: the images.
        size: the height and width in pixels, reached with antialiasing; None keeps their own.
        channels: 1 (grey) or 3 (colour; grey images are repeated); None keeps their own.

    Raises:
        ValueError: for another number of channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 3 (colour) or 1 (grey)")
    pixels = images.images  # (images, channels, height, width)
    record = dict(images.description)
    if channels and pixels.shape[1] != channels:
        if channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)  # (images, 1, ...) -> (images, 3, ...)
            record["channels"] = "grey, three times"
        else:
            pixels = rgb_to_grayscale(pixels)  # (images, 3, ...) -> (images, 1, ...)
            record["channels"] = "colour as grey"
    if size and pixels.shape[2:] != (size, size):
        pixels = resize(pixels, [size, size], antialias=True)
        record["resized"] = size
    return LabelledImages(pixels.contiguous(), images.labels, images.names, record)
