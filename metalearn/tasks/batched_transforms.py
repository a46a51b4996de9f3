"""Transforms of torchvision for many images at once, each with random numbers of its own.

torchvision's random transforms draw once a call, so they are called once an image. Those that
few-shot training uses most are written here for a stack of images. They have the arguments and the
distribution of torchvision's; the numbers come from the generator that is passed.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Batched = Callable[[Tensor, np.random.Generator], Tensor]
# Without random numbers, and for a stack of images as for each of them.
DETERMINISTIC = (
    "CenterCrop",
    "ConvertImageDtype",
    "Grayscale",
    "Identity",
    "Normalize",
    "Pad",
    "Resize",
    "ToDtype",
)
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in a grey value, as torchvision has them


def steps_of(transform: Any) -> list[Any]:
    """The transforms of a `Compose`, also of one inside another; or the transform alone."""
    if type(transform).__name__ != "Compose" or not is_of_torchvision(transform):
        return [transform]
    steps: list[Any] = []
    for part in transform.transforms:
        steps += steps_of(part)
    return steps


def is_of_torchvision(transform: Any) -> bool:
    """Whether this is a transform of torchvision itself, not of a subclass of one."""
    return type(transform).__module__.startswith("torchvision.transforms.")


def batched(transform: Any) -> Batched | None:
    """A torchvision transform for a stack of images (images, channels, height, width).

    Args:
        transform: any callable.

    Returns:
        A function from images and a generator to images; None if the transform, or one of its
        arguments, is not known here, and must be called once an image.

    Example:
        >>> from torchvision.transforms import v2
        >>> flip = batched(v2.RandomHorizontalFlip(p=1.0))
        >>> flip(torch.tensor([[[[1, 2]]]]), np.random.default_rng(0)).tolist()
        [[[[2, 1]]]]
    """
    if not is_of_torchvision(transform):
        return None
    name = type(transform).__name__
    if name in DETERMINISTIC:
        return lambda images, _: transform(images)
    if name in ("RandomHorizontalFlip", "RandomVerticalFlip"):
        side = -1 if name == "RandomHorizontalFlip" else -2
        return lambda images, rng: flipped(images, side, rng.random(len(images)) < transform.p)
    if name == "RandomCrop" and _is_plain_crop(transform):
        return lambda images, rng: _random_crop(transform, images, rng)
    if name == "ColorJitter" and transform.hue is None:
        return lambda images, rng: _random_colours(transform, images, rng)
    return None


def flipped(images: Tensor, side: int, chosen: np.ndarray) -> Tensor:
    """The images with those that are chosen (images,) mirrored along one dimension."""
    rows = torch.from_numpy(np.flatnonzero(chosen))
    return images.index_copy(0, rows, images[rows].flip(side))


# Crops


def _is_plain_crop(transform: Any) -> bool:
    padding = transform.padding
    sides = padding is None or isinstance(padding, int) or len(padding) in (1, 2, 4)
    plain = not transform.pad_if_needed and transform.padding_mode == "constant"
    return sides and plain and isinstance(transform.fill, Real)


def _random_crop(transform: Any, images: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop at a place of its own for each image, after padding with one value."""
    padding = transform.padding
    if padding is not None:
        sides = [padding] if isinstance(padding, int) else list(padding)
        left, top, right, bottom = (sides * 4)[:4]  # one for all, or (x, y) for both sides of each
        images = F.pad(images, (left, right, top, bottom), value=transform.fill)
    height, width = transform.size
    free = (images.shape[-2] - height + 1, images.shape[-1] - width + 1)
    if min(free) < 1:
        raise ValueError(
            f"the crop of {height} x {width} pixels is larger than the padded image of"
            f" {images.shape[-2]} x {images.shape[-1]}"
        )
    tops, lefts = (rng.integers(places, size=len(images)) for places in free)
    return cropped(images, tops, lefts, (height, width))


def cropped(images: Tensor, tops: np.ndarray, lefts: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Windows of one size at a place of its own in each image: (images, channels, *size)."""
    # A view of all windows: (images, channels, tops, lefts, height, width)
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)
    place = (torch.arange(len(images)), slice(None), torch.from_numpy(tops))
    return windows[*place, torch.from_numpy(lefts)]


# Colours


def _random_colours(transform: Any, images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors and in an order of its own for each image."""
    count = len(images)
    order = rng.random((count, 3)).argsort(axis=1)  # (images, places) -> which of the three
    factors = {}
    for number, name in enumerate(("brightness", "contrast", "saturation")):
        bounds = getattr(transform, name)
        if bounds is not None:
            least, most = map(float, bounds)
            factors[number] = rng.uniform(least, most, size=count).astype(np.float32)
    return coloured(images, order, factors)


def coloured(images: Tensor, order: np.ndarray, factors: dict[int, np.ndarray]) -> Tensor:
    """Change the colours of images.

    Args:
        images: (images, 1 or 3 channels, height, width), uint8 or floating-point in [0, 1].
        order: (images, 3), which of brightness (0), contrast (1) and saturation (2) comes first,
            second and third.
        factors: (images,) for each of them; one that is missing is left out.
    """
    whole = not images.is_floating_point()
    # Pixels of uint8 stay whole numbers between the changes, as torchvision has them.
    values = images.float() if whole else images.clone()
    largest = 255 if whole else 1
    for place in range(order.shape[1]):
        scale, by_mean, by_grey = _weights(order[:, place], factors, values)
        mixed = _mixed_in(values, by_mean, by_grey, whole=whole)
        values.mul_(scale).add_(mixed).clamp_(0, largest)
        if whole:
            values.floor_()
    return values.to(images.dtype)


def _weights(
    numbers: np.ndarray, factors: dict[int, np.ndarray], like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of each image, of its mean grey value and of its grey image in the mixture.

    A change is factor * image + (1 - factor) * other, with the other image black for the
    brightness, the mean grey value everywhere for the contrast, the grey image for the saturation.

    Args:
        numbers: which change each image gets (images,).
        factors: (images,) for each change.
        like: the images (images, channels, height, width).

    Returns:
        Three times (images, 1, 1, 1).
    """
    scale = np.ones(len(numbers), np.float32)
    others = np.zeros((3, len(numbers)), np.float32)
    for number, factor in factors.items():
        # A grey image has no saturation.
        chosen = (numbers == number) & (number != 2 or like.shape[1] == 3)
        scale[chosen] = factor[chosen]
        others[number, chosen] = 1 - factor[chosen]
    weights = torch.from_numpy(np.stack([scale, others[1], others[2]])).to(like.dtype)
    by_image, by_mean, by_grey = weights.view(3, -1, 1, 1, 1)
    return by_image, by_mean, by_grey


def _mixed_in(values: Tensor, by_mean: Tensor, by_grey: Tensor, *, whole: bool) -> Tensor:
    """What is added to the scaled images, (images, 1, height, width)."""
    grey = values
    if values.shape[1] == 3:
        red, green, blue = LUMA
        grey = values[:, :1] * red
        grey.add_(values[:, 1:2], alpha=green).add_(values[:, 2:], alpha=blue)
        if whole:
            grey.floor_()
    mean = grey.mean((1, 2, 3), keepdim=True)  # (images, 1, 1, 1)
    return grey * by_grey + mean * by_mean
