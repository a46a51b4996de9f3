"""Random transforms of a task's images, repeatable by the task's seed and number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.data.decoding import as_tensor
from metalearn.runtime.random_state import seeded
from metalearn.tasks.batched_transforms import batched, steps_of

TRIALS = 8  # calls of a transform that show whether it is random
Name = Callable[[int], str]  # the place of an image in a task -> what it is called in messages


class Augmentation:
    """A transform that is applied to every image of a task.

    The transforms of `torchvision.transforms.v2` that `batched_transforms` knows run on all images
    at once. Any other callable runs once an image, while the global generators of torch, numpy and
    Python are seeded from the task's own.

    Args:
        transform: a callable from an image (channels, height, width) to an image; or a `Compose` of
            such.

    Raises:
        TypeError: it cannot be called.

    Example:
        >>> from torchvision.transforms import v2
        >>> augment = Augmentation(v2.RandomCrop(4, padding=1))
        >>> images = torch.rand(10, 3, 4, 4)
        >>> augment(images, np.random.default_rng(0), str).shape
        torch.Size([10, 3, 4, 4])
    """

    def __init__(self, transform: Any) -> None:
        self.transform = checked_transform("augment", transform)
        self.steps = [(step, batched(step)) for step in steps_of(transform)]

    def __call__(self, images: Tensor, rng: np.random.Generator, name: Name) -> Tensor:
        """The images of a task after the transform.

        Args:
            images: (images, channels, height, width), uint8 or floating-point.
            rng: the generator of the task.
            name: what an image is called, for messages.

        Raises:
            ValueError: an image gets another shape than the others, or NaN; it is named with the
                transform.
        """
        # Those of one shape are a tensor, others a list between two steps.
        parts: Tensor | list[Tensor] = images
        uneven = ""
        for step, at_once in self.steps:
            if at_once is not None and isinstance(parts, Tensor):
                try:
                    parts = at_once(parts, rng)
                except (RuntimeError, ValueError, TypeError) as error:
                    raise ValueError(
                        f"augment={title(step)} on {name(0)} failed ({error})"
                    ) from error
                continue
            before = parts
            parts = _one_by_one(step, before, int(rng.integers(2**32)), name)
            if isinstance(parts, list) and isinstance(before, Tensor):
                uneven = title(step)
        if isinstance(parts, Tensor):
            return parts
        other = next(i for i, part in enumerate(parts) if part.shape != parts[0].shape)
        raise ValueError(
            f"augment: {uneven} gives {name(other)} the shape {tuple(parts[other].shape)} but"
            f" {name(0)} {tuple(parts[0].shape)}; end with one size, as v2.CenterCrop(84) does"
        )


def checked_transform(argument: str, transform: Any) -> Any:
    """The transform, if it can be called. Raises TypeError if not."""
    if not callable(transform):
        raise TypeError(
            f"{argument}={transform!r:.60} is a {type(transform).__name__}; give a callable from an"
            " image to an image, such as v2.RandomHorizontalFlip()"
        )
    return transform


def title(transform: Any) -> str:
    """The name of a transform, for messages."""
    return str(getattr(transform, "__name__", type(transform).__name__))


def described(transform: Any) -> str:
    """A transform in words that are the same in every process, for records."""
    text = " ".join(repr(transform).split())
    # The default texts of Python hold the address of an object.
    return title(transform) if re.search(r" at 0x[0-9a-f]+", text) else text


def apply(transform: Any, image: Any, name: str, argument: str = "transform") -> Tensor:
    """One image after a transform, as a tensor.

    Raises:
        ValueError: it holds NaN, or the transform fails; the message names both.
        TypeError: the result is no image.
    """
    text = f"{argument}={title(transform)} on {name}"
    try:
        changed = transform(image)
    except Exception as error:
        raise ValueError(f"{text} failed ({type(error).__name__}: {error})") from error
    return as_tensor(changed, f"the result of {text}")


@contextmanager
def naming_transform(transform: Any, where: str = "") -> Iterator[None]:
    """Name the transform in a ValueError about the images that it gives; None is no transform.

    Args:
        transform: what was applied.
        where: the beginning of the message, such as the task.
    """
    try:
        yield
    except ValueError as error:
        if transform is None:
            raise
        text = str(error)
        named = f"transform={title(transform)}"
        if named not in text:
            text = f"after {named}, {text}"
        raise ValueError(f"{where}{text}") from error


def check_not_random(transform: Any, image: Any) -> None:
    """Raise ValueError if a transform that runs once an image gives one image different values.

    Args:
        transform: called several times.
        image: to try it on.
    """
    results = []
    for seed in range(TRIALS):
        with seeded(seed):
            results.append(apply(transform, image, "item 0"))
    first = results[0]
    if any(result.shape != first.shape or not result.equal(first) for result in results):
        raise ValueError(
            f"transform={title(transform)} draws random numbers, and it would run once an image;"
            " pass it as augment=, which is drawn anew for each task"
        )


def _one_by_one(
    step: Any, images: Tensor | list[Tensor], seed: int, name: Name
) -> Tensor | list[Tensor]:
    """The images after a transform that takes one at a time; a tensor if they have one shape."""
    with seeded(seed):
        parts = [apply(step, image, name(i), "augment") for i, image in enumerate(images)]
    if any(part.dtype != parts[0].dtype for part in parts):
        kinds = ", ".join(sorted({str(part.dtype) for part in parts}))
        raise ValueError(f"augment: {title(step)} gives images of several kinds ({kinds})")
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(parts)
    return parts
