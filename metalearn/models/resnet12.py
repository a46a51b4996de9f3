"""ResNet12, the deeper standard network of few-shot learning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from metalearn.models.conv4 import GROUPS, NORMS
from metalearn.models.dropblock import DropBlock
from metalearn.models.initialization import xavier_
from metalearn.models.standardised import StandardisedConv2d
from metalearn.network.norm import batch_statistics
from metalearn.runtime.checks import positive, widths_of_layers

SLOPE = 0.1
# leaky_relu(z) of a standard normal z has variance (1 + a²) / 2 - (1 - a)² / (2 pi).
LEAKY_GAIN = ((1 + SLOPE**2) / 2 - (1 - SLOPE) ** 2 / (2 * math.pi)) ** -0.5


class ResNet12(nn.Module):
    """Four residual blocks and a linear head: layers block1 to block4 and head.

    Each block has three 3x3 convolutions of 64 to 512 channels, LeakyReLU of slope 0.1 and a
    max-pool. A mean over space comes before the head (Lee et al. 2019, arXiv:1904.03758; BOIL's
    ResNet-12).

    Args:
        ways: outputs of the head.
        channels: of the images.
        widths: channels of each block.
        norm: "batch" (batch norm by the current batch), "group" (group norm), or "none":
            weight-standardised convolutions in place of norms (see `Conv4`).
        drop: the share of values to drop in training, after each block: squares of 5 pixels by
            `DropBlock` in the last two blocks, single values before. Lee et al. take 0.1, which
            their code reaches slowly in the last two. Tasks then run in the loop.

    Raises:
        ValueError: `widths` is empty, there is no such norm, or `drop` is not a share below 1.

    Example:
        >>> import torch
        >>> ResNet12(ways=5)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        ways: int,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        norm: str = "batch",
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        ways, channels = positive(ways=ways, channels=channels)
        widths = widths_of_layers("widths", widths, "(64, 128, 256, 512)")
        if not widths:
            raise ValueError(
                "widths is empty; give the channels of each block, such as (64, 128, 256, 512)"
            )
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}; choose {', '.join(NORMS)}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop={drop!r}; give a share from 0 to below 1, such as 0.1")
        inputs = (channels, *widths)
        for number, (before, after) in enumerate(zip(inputs, widths, strict=False), start=1):
            block = ResidualBlock(before, after, norm)
            if drop:
                last = number > len(widths) - 2
                block.finish.append(DropBlock(drop) if last else nn.Dropout(drop))
            self.add_module(f"block{number}", block)
        self.head = nn.Linear(widths[-1], ways)
        xavier_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, ways)."""
        maps = images
        for name, block in self.named_children():
            if name != "head":
                maps = block(maps)
        return self.head(maps.mean((2, 3)))  # (examples, channels) -> (examples, ways)


class ResidualBlock(nn.Module):
    """Three convolutions with norms beside a 1x1 shortcut, then a 2x2 max-pool.

    Args:
        inputs: channels.
        outputs: channels.
        norm: "batch", "group" or "none" (see `ResNet12`).
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "batch") -> None:
        super().__init__()
        self.path = nn.Sequential(
            *_normed(inputs, outputs, 3, norm),
            _activation(norm),
            *_normed(outputs, outputs, 3, norm),
            _activation(norm),
            *_normed(outputs, outputs, 3, norm),
        )
        # The 1x1 convolution brings the input to the number of outputs.
        self.shortcut = nn.Sequential(*_normed(inputs, outputs, 1, norm))
        self.finish = nn.Sequential(_activation(norm), nn.MaxPool2d(2))
        # Without norms the sum of two maps of variance 1 would have variance 2.
        self.scale = 0.5**0.5 if norm == "none" else 1.0
        # Normalise by the current batch, as in the few-shot papers.
        batch_statistics(self)

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, outputs, height / 2, width / 2)."""
        total = self.path(maps) + self.shortcut(maps)
        return self.finish(total if self.scale == 1 else self.scale * total)


class ScaledLeakyReLU(nn.LeakyReLU):
    """A LeakyReLU whose output has variance 1 for standard normal inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape -> the same."""
        return LEAKY_GAIN * super().forward(inputs)


def _activation(norm: str) -> nn.Module:
    return ScaledLeakyReLU(SLOPE) if norm == "none" else nn.LeakyReLU(SLOPE)


def _normed(inputs: int, outputs: int, size: int, norm: str) -> list[nn.Module]:
    """A convolution with its norm; a standardised one without a norm."""
    padding = size // 2
    # A channel of a single weight has no variance to standardise.
    if norm == "none" and inputs * size > 1:
        return [StandardisedConv2d(inputs, outputs, size, padding=padding)]
    # Convolutions need no bias before a norm.
    convolution = nn.Conv2d(inputs, outputs, size, padding=padding, bias=False)
    if norm == "none":
        return [convolution]
    if norm == "group":
        return [convolution, nn.GroupNorm(math.gcd(GROUPS, outputs), outputs)]
    return [convolution, nn.BatchNorm2d(outputs)]
