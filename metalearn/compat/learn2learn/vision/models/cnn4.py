"""learn2learn's small networks: the same function, and the same names and shapes of weights, so
that these load both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.nn import Flatten, Lambda
from metalearn.kernels.conv_cpu import Convolutions, in_channels_last, in_fastest_format

Layer = TypeVar("Layer", bound=Any)


class LinearBlock(nn.Module):
    """Linear layer, batch norm on the current batch's statistics, ReLU."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.normalize = nn.BatchNorm1d(
            output_size, momentum=0.999, eps=1e-3, track_running_stats=False
        )
        self.linear = fc_init_(nn.Linear(input_size, output_size))

    def forward(self, x: Tensor) -> Tensor:
        """(examples, input_size) -> (examples, output_size)."""
        return self.relu(self.normalize(self.linear(x)))


class ConvBlock(nn.Module):
    """Convolution, batch norm with running statistics, ReLU, and a max-pool (or else a stride of
    2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        max_pool: bool = True,
        max_pool_factor: float = 1.0,
    ) -> None:
        super().__init__()
        stride = int(2 * max_pool_factor)
        self.max_pool = nn.MaxPool2d(stride) if max_pool else nn.Identity()
        self.normalize = nn.BatchNorm2d(out_channels)
        nn.init.uniform_(self.normalize.weight)
        self.relu = nn.ReLU()
        self.conv = maml_init_(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride=1 if max_pool else stride, padding=1
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(examples, in_channels, height, width) -> (examples, out_channels, ...)."""
        return in_fastest_format(self._maps, x, self.conv.out_channels)

    def _maps(self, x: Tensor) -> Tensor:
        return self.relu(
            self.max_pool(self.normalize(self.conv(x)))
        )  # ReLU is monotone: the same after the pool, on fewer values


class ConvBase(nn.Sequential):
    """`layers` blocks in a row."""

    def __init__(
        self,
        hidden: int = 64,
        channels: int = 1,
        max_pool: bool = False,
        layers: int = 4,
        max_pool_factor: float = 1.0,
    ) -> None:
        inputs = [channels] + [hidden] * (layers - 1)
        super().__init__(
            *(ConvBlock(count, hidden, (3, 3), max_pool, max_pool_factor) for count in inputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, hidden, ...)."""
        with Convolutions():  # also where a script runs the body by itself, as for ANIL
            return in_channels_last(super().forward, x)


class OmniglotFC(nn.Module):
    """The fully connected network for Omniglot (Santoro et al. 2016): 256, 128, 64 and 64 units by
    default.
    """

    def __init__(
        self, input_size: int, output_size: int, sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        widths = [input_size, *([256, 128, 64, 64] if sizes is None else sizes)]
        blocks = [LinearBlock(before, after) for before, after in pairwise(widths)]
        self.features = nn.Sequential(Flatten(), nn.Sequential(*blocks))
        self.classifier = fc_init_(nn.Linear(widths[-1], output_size))
        self.input_size = input_size

    def forward(self, x: Tensor) -> Tensor:
        """(examples, ...) -> (examples, output_size)."""
        return self.classifier(self.features(x))


class OmniglotCNN(nn.Module):
    """The convolutional network for Omniglot (Finn et al. 2017): images of 28 by 28 pixels, stride
    2, a mean over space.
    """

    def __init__(self, output_size: int = 5, hidden_size: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.base = ConvBase(hidden_size, channels=1, max_pool=False, layers=layers)
        self.features = nn.Sequential(
            Lambda(_as_images), self.base, Lambda(_spatial_mean), Flatten()
        )
        self.classifier = nn.Linear(hidden_size, output_size)
        nn.init.normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, 1, 28, 28), or flat images -> (examples, output_size)."""
        return self.classifier(self.features(x))


class CNN4Backbone(ConvBase):
    """The blocks of `CNN4`, with flat features."""

    def __init__(
        self,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        max_pool_factor: float | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            channels,
            max_pool,
            layers,
            4 // layers if max_pool_factor is None else max_pool_factor,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, features)."""
        return super().forward(x).flatten(1)


class CNN4(nn.Module):
    """The convolutional network for miniImageNet (Ravi and Larochelle 2017): images of 84 by 84
    pixels, `features` and `classifier`.

    Other sizes of images need `embedding_size`, what enters the classifier.
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        self.features = CNN4Backbone(hidden_size, layers, channels, max_pool)
        self.classifier = maml_init_(
            nn.Linear(25 * hidden_size if embedding_size is None else embedding_size, output_size)
        )
        self.hidden_size = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, output_size)."""
        return self.classifier(self.features(x))


MiniImagenetCNN = CNN4


def maml_init_(module: Layer) -> Layer:
    """Xavier's uniform distribution for the weight, zero for the bias; in place."""
    nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def fc_init_(module: Layer) -> Layer:
    """A normal distribution of deviation 0.01, cut at two of them, for the weight, zero for the
    bias; in place.
    """
    nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
    nn.init.zeros_(module.bias)
    return module


def _as_images(x: Tensor) -> Tensor:
    return x.view(-1, 1, 28, 28)


def _spatial_mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


__getattr__ = nearest(
    __name__,
    [
        "CNN4",
        "CNN4Backbone",
        "ConvBase",
        "ConvBlock",
        "MiniImagenetCNN",
        "OmniglotCNN",
        "OmniglotFC",
        "fc_init_",
        "maml_init_",
    ],
)
