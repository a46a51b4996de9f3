"""The networks of the few-shot papers, with the names of their layers and batch norm on the current
batch's statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.kernels.conv_cpu import in_channels_last, in_fastest_format, norm_pool_relu
from metalearn.kernels.conv_per_task import conv_norm_pool_relu
from metalearn.runtime.checks import positive


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pool, then a linear head: layers
    block1 to block4 and head.

    Finn et al. 2017 use hidden=32 for miniImageNet (size 84, 3 channels) and 64 with `pool=False`
    for Omniglot; later papers hidden=64 throughout (Vinyals et al. 2016). Convolutions and the head
    start from Xavier's uniform distribution, biases from zero.

    Arguments:
        ways: outputs of the head.
        channels: of the images: 1 for Omniglot, 3 for miniImageNet.
        hidden: channels of every block.
        size: height and width of the images in pixels.
        pool: max-pool after every block; False for convolutions of stride 2 and a mean over space
            before the head, Finn's Omniglot net.
    Raises ValueError where `size` is too small for four poolings.

    Example:
        >>> Conv4(ways=5)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, ways: int, channels: int = 1, hidden: int = 64, size: int = 28, pool: bool = True
    ) -> None:
        super().__init__()
        ways, channels, hidden, size = positive(
            ways=ways, channels=channels, hidden=hidden, size=size
        )
        if pool and size < 16:
            raise ValueError(
                f"images of {size} pixels vanish in four 2x2 poolings; use at least 16 pixels, or"
                " pool=False"
            )
        self.block1 = ConvBlock(channels, hidden, pool)
        self.block2 = ConvBlock(hidden, hidden, pool)
        self.block3 = ConvBlock(hidden, hidden, pool)
        self.block4 = ConvBlock(hidden, hidden, pool)
        self.pool = pool
        self.head = nn.Linear(hidden * (size // 16) ** 2 if pool else hidden, ways)
        _xavier(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, ways)."""
        self._check(images)
        plain = all(type(block) is ConvBlock and block.is_plain() for block in self._blocks())
        maps = in_channels_last(self._maps, images) if plain else self._maps(images)
        return self.head(maps.flatten(1) if self.pool else maps.mean((2, 3)))

    def _check(self, images: Tensor) -> None:
        """Raise ValueError naming the channels and sizes that the network takes, where these images
        have others.
        """
        shape, conv, head = tuple(images.shape), self.block1.conv, self.head
        if len(shape) != 4:
            raise ValueError(
                "Conv4 takes images (examples, channels, height, width), and not a tensor of"
                f" {shape}"
            )
        _, channels, height, width = shape
        if isinstance(conv, nn.Conv2d) and channels != conv.in_channels:
            raise ValueError(
                f"the images have {channels} channels, and this Conv4 takes {conv.in_channels};"
                f" build Conv4(channels={channels})"
            )
        places = (height // 16) * (width // 16)
        if (
            self.pool
            and isinstance(head, nn.Linear)
            and places * self.block4.conv.out_channels != head.in_features
        ):
            raise ValueError(
                f"the images are {height} x {width} pixels, and this Conv4 was built for others;"
                f" build Conv4(size={height}) for square images of at least 16 pixels, or resize"
                " them"
            )

    def _blocks(self) -> list[nn.Module]:
        return [self.block1, self.block2, self.block3, self.block4]

    def _maps(self, images: Tensor) -> Tensor:
        for block in self._blocks():
            images = block(images)
        return images


class ConvBlock(nn.Module):
    """Convolution, batch norm, max-pool, ReLU.

    Pooling first is the same function (ReLU is monotone) on a quarter of the values.
    """

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=1 if pool else 2, padding=1)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, outputs, height / 2, width / 2)."""
        if not self.is_plain():
            return torch.relu(self.pool(self.norm(self.conv(maps))))
        pool = isinstance(self.pool, nn.MaxPool2d)
        if maps.device.type == "cuda":
            return conv_norm_pool_relu(maps, self.conv, self.norm, pool=pool)
        compute = self._pooled if pool else self._strided
        return in_fastest_format(compute, maps, self.conv.out_channels)

    def is_plain(self) -> bool:
        """Whether its parts are those that it was built with, and no hook sees their outputs."""
        parts = self.conv, self.norm, self.pool
        kinds = tuple(map(type, parts))
        return (
            kinds
            in (
                (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
                (nn.Conv2d, nn.BatchNorm2d, nn.Identity),
            )
            and self.norm.running_mean is None
            and not any(_has_hooks(module) for module in (self, *parts))
        )

    def _pooled(self, maps: Tensor) -> Tensor:
        return norm_pool_relu(self.conv(maps), self.norm.weight, self.norm.bias, self.norm.eps)

    def _strided(self, maps: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(maps)))


def _has_hooks(module: nn.Module) -> bool:
    kinds = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
    return any(getattr(module, kind) for kind in kinds)


def _xavier(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
