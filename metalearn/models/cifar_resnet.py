"""The residual networks of He et al. for images of 32 x 32 pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.runtime.checks import positive

CHANNELS = (16, 32, 64)


def cifar_resnet(
    depth: int = 20, width: int = 1, classes: int = 10, channels: int = 3
) -> CifarResNet:
    """A residual network of `6 m + 2` layers, `width` times as wide as the published one.

    He et al. 2016 (arXiv:1512.03385, section 4.2): three stages of `m` blocks with 16, 32 and 64
    channels. Nguyen et al. 2021 (arXiv:2010.15327) multiply the channels by `width`. Shortcuts
    have no parameters: they take every second pixel and add channels of zeros.

    Args:
        depth: 6 m + 2 for a whole m: 14, 20, 26, 32, 38, 44, 56, 110, 164.
        width: factor on the channels of every stage.
        classes: outputs of the head.
        channels: of the images.

    Returns:
        The network, with batch norm that keeps running statistics. Its head is `linear`.

    Raises:
        ValueError: The depth is not 6 m + 2.

    Example:
        >>> import torch
        >>> network = cifar_resnet(depth=20)
        >>> network(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    depth, width, classes, channels = positive(
        depth=depth, width=width, classes=classes, channels=channels
    )
    blocks, rest = divmod(depth - 2, 6)
    if rest or not blocks:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        raise ValueError(f"depth={depth}: a CIFAR ResNet has 6 m + 2 layers; take {nearest}")
    return CifarResNet(blocks, width, classes, channels)


class CifarResNet(nn.Module):
    """What `cifar_resnet` builds: layers conv1, bn1, layer1.0 to layer3.m and linear."""

    def __init__(self, blocks: int, width: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        first, second, third = (width * count for count in CHANNELS)
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks)
        self.layer2 = _stage(first, second, blocks)
        self.layer3 = _stage(second, third, blocks)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, classes)."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(maps.mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, added to their input: `relu(x + branch(x))`."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if channels == outputs else 2
        self.conv1 = nn.Conv2d(channels, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.missing = outputs - channels

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (examples, channels, height, width) -> (examples, outputs, height, width)."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(branch + self.shortcut(maps))

    def shortcut(self, maps: Tensor) -> Tensor:
        """The input at the size of the output: option A of He et al., without parameters."""
        if not self.missing:
            return maps
        before = self.missing // 2
        # Pads the channels, the third dimension from the right, with zeros on both sides.
        padding = (0, 0, 0, 0, before, self.missing - before)
        return F.pad(maps[:, :, :: self.stride, :: self.stride], padding)


def _stage(channels: int, outputs: int, blocks: int) -> nn.Sequential:
    later = [ResidualBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(channels, outputs), *later)
