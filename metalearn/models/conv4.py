"""Conv4, the standard network of few-shot learning."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.kernels.conv_cpu import in_channels_last, in_fastest_format, norm_pool_relu
from metalearn.kernels.conv_per_task import conv_norm_pool_relu
from metalearn.models.initialization import xavier_
from metalearn.models.standardised import StandardisedBlock
from metalearn.runtime.checks import positive

NORMS = ("batch", "group", "none")
GROUPS = 8  # of group norm; fewer if they do not divide the channels


class Conv4(nn.Module):
    """Four convolutional blocks and a linear head: layers block1 to block4 and head.

    Each block is a 3x3 convolution, batch norm, ReLU and a 2x2 max-pool. Finn et al. 2017 use
    hidden=32 for miniImageNet (size 84, 3 channels) and 64 with `pool=False` for Omniglot; later
    papers use hidden=64 throughout (Vinyals et al. 2016). The weights of convolutions and head are
    drawn from Xavier's uniform distribution, and biases are zero.

    Args:
        ways: outputs of the head.
        channels: of the images: 1 for Omniglot, 3 for miniImageNet.
        hidden: channels of every block.
        size: height and width of the images in pixels.
        pool: max-pool after every block; False for convolutions of stride 2 and a mean over space
            before the head, as in Finn's Omniglot network.
        norm: "batch" (batch norm by the current batch), "group" (group norm), or "none":
            weight-standardised convolutions in place of norms. With "group" and "none" no example
            depends on the others of its batch.

    Raises:
        ValueError: if `size` is too small for four poolings, or there is no such norm.

    Example:
        >>> Conv4(ways=5)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        ways: int,
        channels: int = 1,
        hidden: int = 64,
        size: int = 28,
        pool: bool = True,  # noqa: FBT001, FBT002 (public: scripts pass it by position)
        norm: str = "batch",
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
        # (examples, channels, size, size) -> (examples, hidden, size / 2, size / 2) and so on
        self.block1 = _block(channels, hidden, norm, pool=pool)
        self.block2 = _block(hidden, hidden, norm, pool=pool)
        self.block3 = _block(hidden, hidden, norm, pool=pool)
        self.block4 = _block(hidden, hidden, norm, pool=pool)
        self.pool = pool
        # Four poolings leave size // 16 positions a side; without them the mean leaves one.
        positions = (size // 16) ** 2 if pool else 1
        self.head = nn.Linear(hidden * positions, ways)
        xavier_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, ways)."""
        self._check(images)
        # Replaced parts and hooks see tensors in their usual memory format.
        plain = all(type(block) is ConvBlock and block.is_plain() for block in self._blocks())
        maps = in_channels_last(self._maps, images) if plain else self._maps(images)
        features = maps.flatten(1) if self.pool else maps.mean((2, 3))  # (examples, features)
        return self.head(features)

    def _check(self, images: Tensor) -> None:
        """Raise ValueError for images that the network was not built for, naming those it takes."""
        if images.dim() != 4:
            raise ValueError(
                "Conv4 takes images (examples, channels, height, width), and not a tensor of"
                f" {tuple(images.shape)}"
            )
        _, channels, height, width = images.shape
        # A user may have replaced a layer: only those of known kinds are checked.
        conv, head = self.block1.conv, self.head
        if isinstance(conv, nn.Conv2d) and channels != conv.in_channels:
            raise ValueError(
                f"the images have {channels} channels, and this Conv4 takes {conv.in_channels};"
                f" build Conv4(channels={channels})"
            )
        if not self.pool or not isinstance(head, nn.Linear):
            return
        features = (height // 16) * (width // 16) * self.block4.conv.out_channels
        if features != head.in_features:
            raise ValueError(
                f"the images are {height} x {width} pixels, and this Conv4 was built for another"
                f" size; build Conv4(size={height}) for square images of at least 16 pixels, or"
                " resize them"
            )

    def _blocks(self) -> list[nn.Module]:
        return [self.block1, self.block2, self.block3, self.block4]

    def _maps(self, images: Tensor) -> Tensor:
        for block in self._blocks():
            images = block(images)
        return images


def _block(inputs: int, outputs: int, norm: str, *, pool: bool) -> ConvBlock | StandardisedBlock:
    """A block with one of `NORMS`."""
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}; choose {', '.join(NORMS)}")
    if norm == "none":
        return StandardisedBlock(inputs, outputs, pool=pool)
    block = ConvBlock(inputs, outputs, pool)
    if norm == "group":
        block.add_module("norm", nn.GroupNorm(math.gcd(GROUPS, outputs), outputs))
    return block


class ConvBlock(nn.Module):
    """Convolution, batch norm, max-pool and ReLU; without a pool, a convolution of stride 2.

    ReLU is monotone, so max(relu(x)) = relu(max(x)): pooling first gives the same on a quarter of
    the values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pool: bool,  # noqa: FBT001 (public)
    ) -> None:
        super().__init__()
        stride = 1 if pool else 2
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, outputs, height / 2, width / 2)."""
        if not self.is_plain():
            return torch.relu(self.pool(self.norm(self.conv(maps))))
        has_pool = isinstance(self.pool, nn.MaxPool2d)
        # On a GPU one autograd Function computes the block; elsewhere its layers run one by one, in
        # the fastest memory format.
        if maps.device.type == "cuda":
            return conv_norm_pool_relu(maps, self.conv, self.norm, pool=has_pool)
        compute = self._pooled if has_pool else self._strided
        return in_fastest_format(compute, maps, self.conv.out_channels)

    def is_plain(self) -> bool:
        """Whether its parts are those that it was built with, and no hook sees their outputs."""
        parts = self.conv, self.norm, self.pool
        if type(self.conv) is not nn.Conv2d or type(self.norm) is not nn.BatchNorm2d:
            return False
        if type(self.pool) not in (nn.MaxPool2d, nn.Identity):
            return False
        hooked = any(_has_hooks(module) for module in (self, *parts))
        return self.norm.running_mean is None and not hooked

    def _pooled(self, maps: Tensor) -> Tensor:
        return norm_pool_relu(self.conv(maps), self.norm.weight, self.norm.bias, self.norm.eps)

    def _strided(self, maps: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(maps)))


def _has_hooks(module: nn.Module) -> bool:
    kinds = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
    return any(getattr(module, kind) for kind in kinds)
