"""Pointer value retrieval on images: one digit says which of three others is the label.

Zhang, Raghu, Kleinberg and Bengio 2021 (arXiv:2107.12580).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record

from .decoding import check_choice, check_memory
from .images import LabelledImages
from .pointer_value import DIGITS, NAMES, label_entropy

SIDE = 28  # pixels of a digit
CELL = 40  # pixels of its cell, so it moves by up to 6 pixels from the middle
CORNERS = ((0, 0), (0, CELL), (CELL, 0), (CELL, CELL))  # of the cells in the image
PLACES = ("pointer", "top right", "bottom left", "bottom right")
POINTED = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3)  # the place that each pointer 0 to 9 points to
HELD_OUT = ((), (1, 2, 3), (4, 5, 6), (7, 8, 9, 0))  # digits of each place
BLOCK = 4096  # images that are drawn from one generator


class PointerImages(LabelledImages):
    """The result of `pointer_images`: labelled images and what they show.

    Attributes:
        digits: (images, 4) int64, those at `PLACES`.
        sources: (images, 4) int64, which images of the source they are.
        offsets: (images, 4, 2) int64, rows and columns of each digit's corner in its cell, 0 to 12.
    """

    def __init__(
        self,
        images: Tensor,
        digits: Tensor,
        sources: Tensor,
        offsets: Tensor,
        description: Record,
    ) -> None:
        pointed = torch.tensor(POINTED)[digits[:, :1]]  # (images, 1)
        super().__init__(images, digits.gather(1, pointed)[:, 0], NAMES, description)
        self.digits = digits
        self.sources = sources
        self.offsets = offsets

    @property
    def entropy(self) -> float:
        """The entropy of the labels in bits (see `label_entropy`)."""
        return label_entropy(self.labels)

    def facts(self) -> dict[str, Tensor]:
        """What a probe may ask of an image, (images,) each: the digit at each of `PLACES`."""
        return {place: self.digits[:, column] for column, place in enumerate(PLACES)}


def pointer_images(
    source: LabelledImages,
    size: int,
    *,
    seed: int = 0,
    holdout: str | None = None,
    adversarial: bool = False,
) -> PointerImages:
    """Images of four digits, 80 x 80, labelled with the one that the first points to.

    The digit at the top left is the pointer: 0 to 3 points to the top right, 4 to 6 to the bottom
    left, 7 to 9 to the bottom right. Each digit is 28 x 28 in a cell of 40 x 40, at a random place.
    The four digits are drawn uniformly and independently, and then an image of each.

    With `holdout="positions"` some digits never are at some places: 1, 2, 3 at the top right, 4, 5,
    6 at the bottom left, 7, 8, 9, 0 at the bottom right. Adversarial images have only these there.

    Image i depends on the settings and on (seed, i), but not on the size.

    Args:
        source: grey images of 28 x 28 pixels of the digits 0 to 9, labelled so. Training digits for
            a training set, test digits for a test set.
        size: how many images.
        seed: of the draw. Take different seeds for training and test.
        holdout: "positions", or None.
        adversarial: draw held-out digits only.

    Raises:
        ValueError: the source has other classes or images, there is no such holdout, or nothing is
            held out.
        TypeError: the source is no `LabelledImages`.

    Example:
        >>> pixels = torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8)
        >>> digits = LabelledImages(pixels, torch.arange(20) % 10, tuple("0123456789"))
        >>> images = pointer_images(digits, 6, holdout="positions")
        >>> images.images.shape, images.digits.shape
        (torch.Size([6, 1, 80, 80]), torch.Size([6, 4]))
    """
    size = whole_number("size", size)
    seed = whole_number("seed", seed, least=0)
    _check_source(source)
    if holdout is not None:
        check_choice("holdout", holdout, ("positions",))
    if adversarial and holdout is None:
        raise ValueError(
            "adversarial=True draws held-out digits, and nothing is held out; give"
            " holdout='positions', as for the training set"
        )
    check_memory(size * (2 * CELL) ** 2, f"size={size:,}", "ask for fewer images")
    allowed = [_allowed(held_out, holdout, adversarial=adversarial) for held_out in HELD_OUT]
    members = [np.flatnonzero(source.labels.numpy() == digit) for digit in range(DIGITS)]
    draws = [_draw(allowed, members, seed, block) for block in range(-(-size // BLOCK))]
    digits, sources, offsets = (
        torch.from_numpy(np.concatenate(parts)[:size]) for parts in zip(*draws, strict=True)
    )
    images = torch.zeros(size, 1, 2 * CELL, 2 * CELL, dtype=torch.uint8)
    for rows in torch.arange(size).split(BLOCK):
        images[rows] = _composed(source.images[sources[rows]][:, :, 0], offsets[rows])
    description = {
        "source": "pointer_images",
        "digits": source.description,
        "size": size,
        "seed": seed,
        "holdout": holdout,
        "adversarial": adversarial,
    }
    return PointerImages(images, digits, sources, offsets, description)


def _check_source(source: object) -> None:
    """Raise an error unless the source has images of every digit, of the right size."""
    if not isinstance(source, LabelledImages):
        raise TypeError(
            f"the digits are a {type(source).__name__}; give LabelledImages, such as"
            " metalearn.data.labelled_sets.load('mnist').train"
        )
    shape = tuple(source.images.shape[1:])
    if shape != (1, SIDE, SIDE):
        raise ValueError(
            f"the digits are images of {shape}; give grey images of (1, {SIDE}, {SIDE}), as MNIST's"
            " are"
        )
    if len(source.names) != DIGITS:
        raise ValueError(
            f"the digits have {len(source.names)} classes; give the ten digits, labelled 0 to 9"
        )
    missing = set(range(DIGITS)) - set(source.labels.tolist())
    if missing:
        raise ValueError(
            f"there is no image of the digit {min(missing)}; give a source with images of all ten"
        )


def _allowed(held_out: tuple[int, ...], holdout: str | None, *, adversarial: bool) -> np.ndarray:
    """The digits that a place may show."""
    # The pointer's place holds out nothing.
    if holdout is None or not held_out:
        return np.arange(DIGITS)
    if adversarial:
        return np.array(held_out)
    return np.setdiff1d(np.arange(DIGITS), held_out)


def _draw(
    allowed: list[np.ndarray], members: list[np.ndarray], seed: int, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits (block, 4), their images in the source (block, 4) and offsets (block, 4, 2)."""
    # A whole block is drawn, also if fewer images are needed, so the size changes no image.
    rng = np.random.Generator(np.random.Philox(key=[seed, block]))
    digits = np.stack([choices[rng.integers(0, len(choices), BLOCK)] for choices in allowed], 1)
    sources = np.empty_like(digits)
    uniform = rng.random(digits.shape)
    for digit, images in enumerate(members):
        shown = digits == digit
        sources[shown] = images[(uniform[shown] * len(images)).astype(np.int64)]
    offsets = rng.integers(0, CELL - SIDE + 1, (BLOCK, len(PLACES), 2))
    return digits, sources, offsets


def _composed(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Four digits (images, 4, 28, 28) at their offsets, as images (images, 1, 80, 80)."""
    count = len(pixels)
    canvas = torch.zeros(count, 1, 2 * CELL, 2 * CELL, dtype=torch.uint8)
    corners = offsets + torch.tensor(CORNERS)  # (images, 4, 2)
    steps = torch.arange(SIDE)
    rows = corners[:, :, 0, None, None] + steps[:, None]  # (images, 4, 28, 1)
    columns = corners[:, :, 1, None, None] + steps  # (images, 4, 1, 28)
    numbers = torch.arange(count)[:, None, None, None]
    canvas[numbers, 0, rows, columns] = pixels
    return canvas
