"""The wide residual network: 28 layers, ten times as wide (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, beside a shortcut.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        dropout: the rate of dropout between the convolutions.
        stride: of the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()  # the identity, if the shape does not change
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """(examples, inputs, height, width) -> (examples, outputs, ...)."""
        maps = self.dropout(self.conv1(self.bn1(x).relu()))
        return self.conv2(self.bn2(maps).relu()) + self.shortcut(x)


class WideResNet(nn.Module):
    """Three groups of wide blocks, and a mean over 21x21 positions.

    Args:
        depth: the number of convolutions in a row: 6n + 4, for n blocks in each group.
        widen_factor: channels are 16, 32 and 64 times this.
        dropout_rate: the rate of dropout in the blocks.

    Raises:
        ValueError: if `depth` is of another form.
    """

    def __init__(self, depth: int, widen_factor: int, dropout_rate: float) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth} must be 6n + 4, such as 10, 16, 22 or 28")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        channels = 16
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            width = 8 * 2**number * widen_factor  # 16, 32 and 64 times the factor
            layer = nn.Sequential(WideBlock(channels, width, dropout_rate, stride))
            for _ in range(depth // 6 - 1):
                layer.append(WideBlock(width, width, dropout_rate, 1))
            self.add_module(f"layer{number}", layer)
            channels = width
        self.bn1 = nn.BatchNorm2d(channels, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, 3, height, width) -> (examples, features).

        Images of 84 pixels give one mean; at least 81 pixels are needed.
        """
        x = self.conv1(x)
        for number in range(1, 4):
            x = self.get_submodule(f"layer{number}")(x)
        # Two of the groups halve the maps: 84 pixels -> 21 x 21 positions.
        return F.avg_pool2d(self.bn1(x).relu(), 21).flatten(1)


class WRN28Backbone(WideResNet):
    """The blocks of `WRN28`, with 640 flat features for images of 84 pixels."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(depth=28, widen_factor=10, dropout_rate=dropout)


class WRN28(nn.Module):
    """The wide residual network for images of 84 pixels: `features` and `classifier`.

    Args:
        output_size: outputs of the classifier.
        hidden_size: its inputs.
        dropout: the rate of dropout in the blocks.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = WRN28(output_size=5)
        >>> sum(parameter.numel() for parameter in net.features.parameters())
        36482880
    """

    def __init__(self, output_size: int, hidden_size: int = 640, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = WRN28Backbone(dropout)
        self.classifier = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, 3, height, width) -> (examples, output_size)."""
        return self.classifier(self.features(x))


__getattr__ = nearest(__name__, ["WRN28", "WRN28Backbone", "WideBlock", "WideResNet"])
