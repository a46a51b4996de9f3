"""learn2learn's small networks, with the same functions and the same names of weights."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

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
    """Linear layer, batch norm by the current batch, ReLU."""

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
    """Convolution, batch norm with running statistics, ReLU, and a max-pool or a stride of 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        max_pool: bool = True,
        max_pool_factor: float = 1.0,
    ) -> None:
        super().__init__()
        factor = int(2 * max_pool_factor)  # by which height and width shrink
        stride = 1 if max_pool else factor
        self.max_pool = nn.MaxPool2d(factor) if max_pool else nn.Identity()
        self.normalize = nn.BatchNorm2d(out_channels)
        # The order of the draws is learn2learn's: the scale of the norm, then the convolution.
        nn.init.uniform_(self.normalize.weight)
        self.relu = nn.ReLU()
        self.conv = maml_init_(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(examples, in_channels, height, width) -> (examples, out_channels, ...)."""
        return in_fastest_format(self._maps, x, self.conv.out_channels)

    def _maps(self, x: Tensor) -> Tensor:
        # ReLU is monotone: it gives the same after the pool, on fewer values.
        return self.relu(self.max_pool(self.normalize(self.conv(x))))


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
        blocks = [ConvBlock(width, hidden, (3, 3), max_pool, max_pool_factor) for width in inputs]
        super().__init__(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, hidden, ...)."""
        with Convolutions():  # here too, for scripts that run the body by itself, as for ANIL
            return in_channels_last(super().forward, x)


class OmniglotFC(nn.Module):
    """The fully connected network for Omniglot (Santoro et al. 2016).

    Args:
        input_size: features of an example.
        output_size: outputs of the classifier.
        sizes: units of the hidden layers; by default 256, 128, 64 and 64.
    """

    def __init__(
        self, input_size: int, output_size: int, sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if sizes is None:
            sizes = (256, 128, 64, 64)
        widths = [input_size, *sizes]
        blocks = [LinearBlock(before, after) for before, after in pairwise(widths)]
        self.features = nn.Sequential(Flatten(), nn.Sequential(*blocks))
        self.classifier = fc_init_(nn.Linear(widths[-1], output_size))
        self.input_size = input_size

    def forward(self, x: Tensor) -> Tensor:
        """(examples, ...) -> (examples, output_size)."""
        return self.classifier(self.features(x))


class OmniglotCNN(nn.Module):
    """The convolutional network for Omniglot (Finn et al. 2017).

    It takes images of 28 by 28 pixels. Convolutions have stride 2, and a mean over space comes
    before the classifier.
    """

    def __init__(self, output_size: int = 5, hidden_size: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.base = ConvBase(hidden_size, channels=1, max_pool=False, layers=layers)
        self.features = nn.Sequential(
            Lambda(_as_images), self.base, Lambda(_spatial_mean), Flatten()
        )
        # (examples, hidden_size) after the mean over space
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
        if max_pool_factor is None:
            max_pool_factor = 4 // layers
        super().__init__(hidden_size, channels, max_pool, layers, max_pool_factor)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, features)."""
        return super().forward(x).flatten(1)


class CNN4(nn.Module):
    """The convolutional network for miniImageNet (Ravi and Larochelle 2017).

    It has `features` and a `classifier`. Images other than 84 by 84 pixels need `embedding_size`,
    the number of inputs of the classifier.
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
        if embedding_size is None:
            embedding_size = 25 * hidden_size  # 5 x 5 positions
        self.features = CNN4Backbone(hidden_size, layers, channels, max_pool)
        self.classifier = maml_init_(nn.Linear(embedding_size, output_size))
        self.hidden_size = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, output_size)."""
        return self.classifier(self.features(x))


MiniImagenetCNN = CNN4


def maml_init_(module: Layer) -> Layer:
    """Draw the weight from Xavier's uniform distribution and set the bias to zero, in place."""
    nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def fc_init_(module: Layer) -> Layer:
    """Draw the weight from a truncated normal distribution and set the bias to zero, in place.

    Its standard deviation is 0.01, and it is cut at two of them.
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
