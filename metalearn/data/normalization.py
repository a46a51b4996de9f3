"""How images are normalised by channel: the mean and standard deviation of a training set."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Normalization(NamedTuple):
    """The mean and standard deviation of each channel, by which a network's images are normalised.

    Example:
        >>> Normalization.parse("0.5/0.25")
        Normalization(mean=(0.5,), std=(0.25,))
        >>> str(Normalization.parse("imagenet"))
        '0.485,0.456,0.406/0.229,0.224,0.225'
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return "/".join(",".join(f"{value:g}" for value in values) for values in self)

    @classmethod
    def parse(cls, text: str) -> Normalization | None:
        """Read a normalization from a setting; None stands for images in 0 to 1.

        Args:
            text: "imagenet", "none", or MEAN/STD with commas between the channels.

        Raises:
            ValueError: for another text, or a deviation that is not positive.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"normalize={text!r} is a {type(text).__name__}, not a text such as {IMAGENET}"
            )
        if text == "none":
            return None
        if text == "imagenet":
            return IMAGENET
        try:
            mean, std = map(_numbers, text.split("/"))
        except ValueError:
            mean = std = []
        finite = all(map(math.isfinite, [*mean, *std]))
        if not mean or len(mean) != len(std) or not finite or min(std) <= 0:
            raise ValueError(
                f"normalize={text!r}; choose imagenet or none, or write MEAN/STD by channel, such"
                f" as {IMAGENET}"
            )
        return cls(tuple(mean), tuple(std))

    @classmethod
    def of(cls, value: Any) -> Normalization | None:
        """Read a normalization from a text (see `parse`), a pair (mean, std), or None.

        Raises:
            TypeError: for anything else.
            ValueError: for other numbers of means and deviations, or a deviation that is not
                positive.

        Example:
            >>> Normalization.of((0.5, 0.25))
            Normalization(mean=(0.5,), std=(0.25,))
        """
        if value is None or isinstance(value, str):
            return None if value is None else cls.parse(value)
        try:
            mean, std = (np.asarray(part, dtype=np.float64).reshape(-1).tolist() for part in value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"normalize={value!r:.60} is a {type(value).__name__}; give 'imagenet', or a pair"
                " (mean, std) of numbers by channel"
            ) from error
        return cls.parse("/".join(",".join(map(repr, part)) for part in (mean, std)))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (..., channels, height, width).

        Raises:
            ValueError: they have another number of channels.
        """
        channels = images.shape[-3] if images.ndim >= 3 else 0
        if not channels or len(self.mean) not in (1, channels):
            raise ValueError(
                f"normalize={str(self)!r} is for images of {len(self.mean)} channels, not for"
                f" inputs of shape {tuple(images.shape)}"
            )
        # (channels, 1, 1), to broadcast over height and width
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in self)
        return (images - mean).div_(std)


def _numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Normalization((0.0,), (1.0,))  # images in 0 to 1
