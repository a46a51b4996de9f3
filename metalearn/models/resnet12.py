"""ResNet12, the deeper standard network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metalearn.models.initialization import xavier_
from metalearn.network.norm import batch_statistics
from metalearn.runtime.checks import positive, widths_of_layers


class ResNet12(nn.Module):
    """Four residual blocks and a linear head: layers block1 to block4 and head.

    Each block has three 3x3 convolutions of 64 to 512 channels, LeakyReLU of slope 0.1 and a
    max-pool. A mean over space comes before the head (Lee et al. 2019; BOIL's ResNet-12).

    Args:
        ways: outputs of the head.
        channels: of the images.
        widths: channels of each block.

    Raises:
        ValueError: if `widths` is empty.

    Example:
        >>> import torch
        >>> ResNet12(ways=5)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, ways: int, channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512)
    ) -> None:
        super().__init__()
        ways, channels = positive(ways=ways, channels=channels)
        widths = widths_of_layers("widths", widths, "(64, 128, 256, 512)")
        if not widths:
            raise ValueError(
                "widths is empty; give the channels of each block, such as (64, 128, 256, 512)"
            )
        inputs = (channels, *widths)
        for number, (before, after) in enumerate(zip(inputs, widths, strict=False), start=1):
            self.add_module(f"block{number}", ResidualBlock(before, after))
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
    """Three convolutions with batch norm beside a 1x1 shortcut, then a 2x2 max-pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Convolutions need no bias before a batch norm.
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        # The 1x1 convolution brings the input to the number of outputs.
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.finish = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))
        # Normalise by the current batch, as in the few-shot papers.
        batch_statistics(self)

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, outputs, height / 2, width / 2)."""
        return self.finish(self.path(maps) + self.shortcut(maps))
