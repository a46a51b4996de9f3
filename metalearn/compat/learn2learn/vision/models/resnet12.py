"""The 12-layer residual network of few-shot learning, with DropBlock (Lee et al. 2019)."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.nn import Flatten


class BasicBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, a max-pool of 2, and dropout.

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        drop_rate: the rate of dropout; with DropBlock the rate after 40,000 forward passes.
        drop_block: drop blocks instead of single values.
        block_size: height and width of a dropped block.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        drop_rate: float = 0.0,
        drop_block: bool = False,
        block_size: int = 1,
    ) -> None:
        super().__init__()
        # Built first, as in learn2learn: a seed gives the same weights.
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        )
        self.conv1 = _conv3x3(inplanes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.LeakyReLU(0.1)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv3x3(planes, planes)
        self.bn3 = nn.BatchNorm2d(planes)
        self.maxpool = nn.MaxPool2d(2)
        self.downsample = downsample
        self.drop_rate = drop_rate
        self.drop_block = drop_block
        self.block_size = block_size
        self.num_batches_tracked = 0  # forward passes, which a clone counts for itself

    def forward(self, x: Tensor) -> Tensor:
        """(examples, inplanes, height, width) -> (examples, planes, height / 2, width / 2)."""
        self.num_batches_tracked += 1
        maps = self.relu(self.bn1(self.conv1(x)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        maps = self.bn3(self.conv3(maps)) + self.downsample(x)
        maps = self.maxpool(self.relu(maps))  # (examples, planes, height / 2, width / 2)
        if not self.training or self.drop_rate == 0:
            return maps
        if not self.drop_block:
            return F.dropout(maps, self.drop_rate)
        # The share of dropped values grows with the number of forward passes.
        share = min(self.drop_rate * self.num_batches_tracked / 40000, self.drop_rate)
        return drop_blocks(maps, share, self.block_size)


def drop_blocks(maps: Tensor, share: float, size: int) -> Tensor:
    """DropBlock (Ghiasi et al. 2018): zero square blocks of each channel, and scale up the rest.

    learn2learn 0.2.0 draws the same corners, but drops only a part of each block if the number of
    corners and `size²` share a factor.

    Args:
        maps: (examples, channels, height, width).
        share: the expected share of values to drop.
        size: the height and width of a block.

    Raises:
        ValueError: if the maps are smaller than a block.

    Example:
        >>> drop_blocks(torch.ones(2, 3, 8, 8), share=0.0, size=5).unique().tolist()
        [1.0]
    """
    examples, channels, height, width = maps.shape
    if min(height, width) < size:
        raise ValueError(
            f"maps of {height}x{width} are smaller than blocks of {size}x{size}: use larger images "
            "(84 pixels), dropblock_size=1 or dropblock_dropout=0"
        )
    # A corner drops size² values, so the rate of corners is share / size², times the ratio of all
    # positions to those where a block may start.
    corners = share / size**2 * height**2 / (height - size + 1) ** 2
    shape = (examples, channels, height - size + 1, width - size + 1)
    # (examples, channels, height - size + 1, width - size + 1): 1 where a block starts
    starts = torch.bernoulli(torch.full(shape, corners)).to(maps.device)
    # A value is dropped if a block starts up to size - 1 above and to the left of it.
    dropped = F.max_pool2d(F.pad(starts, [size - 1] * 4), size, stride=1)
    mask = (1 - dropped).to(maps.dtype)
    return mask * maps * (mask.numel() / mask.sum().clamp(min=1))


class ResNet12Backbone(nn.Module):
    """The blocks of `ResNet12`, with flat features.

    Args:
        avg_pool: average 5x5 positions, which is all of them for images of 84 pixels: 640 features;
            False for 16,000.
        wider: widths 64, 160, 320 and 640 (Lee et al. 2019), or else 64, 128, 256 and 512 (Oreshkin
            et al. 2018).
        embedding_dropout: the rate of dropout of the features.
        dropblock_dropout: the rate of dropout in the blocks, and of DropBlock in the last two.
        dropblock_size: height and width of a dropped block.
        channels: of the images.
    """

    def __init__(
        self,
        avg_pool: bool = True,
        wider: bool = True,
        embedding_dropout: float = 0.0,
        dropblock_dropout: float = 0.1,
        dropblock_size: int = 5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        widths = (64, 160, 320, 640) if wider else (64, 128, 256, 512)
        for number, width in enumerate(widths, start=1):
            blocks = number > 2  # the last two layers drop blocks, the first two single values
            size = dropblock_size if blocks else 1
            block = BasicBlock(channels, width, dropblock_dropout, blocks, size)
            self.add_module(f"layer{number}", nn.Sequential(block))
            channels = width
        # Images of 84 pixels leave 5 x 5 positions after four poolings.
        self.avgpool = nn.AvgPool2d(5, stride=1) if avg_pool else nn.Identity()
        self.flatten = Flatten()
        self.dropout = nn.Dropout(embedding_dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, features)."""
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.dropout(self.flatten(self.avgpool(x)))


class ResNet12(nn.Module):
    """The residual network for images of 84 pixels: `features` and `classifier`.

    `metalearn.models.resnet12.ResNet12` is the same kind of network without dropout, for any image
    size.

    Args:
        output_size: outputs of the classifier.
        hidden_size: its inputs: for 84 pixels 640 with `avg_pool`, 16,000 without.
        avg_pool: as in `ResNet12Backbone`.
        wider: as in `ResNet12Backbone`.
        embedding_dropout: as in `ResNet12Backbone`.
        dropblock_dropout: as in `ResNet12Backbone`.
        dropblock_size: as in `ResNet12Backbone`.
        channels: as in `ResNet12Backbone`.

    Example:
        >>> ResNet12(5)(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int = 640,
        avg_pool: bool = True,
        wider: bool = True,
        embedding_dropout: float = 0.0,
        dropblock_dropout: float = 0.1,
        dropblock_size: int = 5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.features = ResNet12Backbone(
            avg_pool, wider, embedding_dropout, dropblock_dropout, dropblock_size, channels
        )
        self.classifier = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, output_size)."""
        return self.classifier(self.features(x))


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


__getattr__ = nearest(__name__, ["BasicBlock", "ResNet12", "ResNet12Backbone", "drop_blocks"])
