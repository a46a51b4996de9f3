"""The networks of the Transfusion paper, and any classification network by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet

from metalearn.models import registry
from metalearn.runtime.checks import whole_number
from transfer.initialisation.strategies import check_network


class _Shape(NamedTuple):
    """What distinguishes a network of the CBR family."""

    kernel: int
    widths: tuple[int, ...]
    last_pool: bool = True


# The parameter counts of the paper decide the widths (see `cbr`).
FAMILY = {
    "large_t": _Shape(7, (32, 64, 128, 256, 512), last_pool=False),
    "large_w": _Shape(7, (64, 128, 256, 512)),
    "small": _Shape(7, (32, 64, 128, 256)),
    "tiny": _Shape(5, (32, 64, 128, 256)),
}
MINI = _Shape(5, (8, 16, 32, 64))  # the command line's "cbr-mini", for quick trials


def cbr(name: str, outputs: int, channels: int = 3) -> CBR:
    """Build a network of the CBR family (Raghu et al. 2019, arXiv:1902.07208).

    Blocks of convolution, batch norm, ReLU and 3x3 max-pool of stride 2, then a mean over space and
    a linear head: layers block1 to block4 (and block5 of "large_t", which has no pool) and head.
    Kernels are 7x7, and 5x5 in "tiny".

    The paper's parameter counts omit the first convolution and the batch norms, and hold exactly
    with 5 outputs. They imply the widths 32 to 256 for "tiny", although the text says 64 to 512;
    the counts are followed here. The paper does not mention padding. Here images of 224 pixels or
    more are not padded; for smaller ones convolutions and pools are padded, or the maps would
    vanish.

    Args:
        name: "large_t", "large_w", "small" or "tiny".
        outputs: of the head.
        channels: of the images, which may have any size.

    Raises:
        ValueError: for another name; the message lists those that exist.

    Example:
        >>> cbr("tiny", outputs=2, channels=1)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 2])
    """
    _check_family(name)
    return CBR(*FAMILY[name], outputs=outputs, channels=channels)


def _check_family(name: str) -> None:
    """Raise ValueError for a name that the CBR family does not have."""
    if not isinstance(name, str) or name not in FAMILY:
        raise ValueError(f"there is no CBR network {name!r}; there are {', '.join(FAMILY)}")


# Conv4 and ResNet12 are left out: they normalise by the current batch, in tests too.
NETWORKS: dict[str, registry.Builder] = {f"cbr_{name}": partial(cbr, name) for name in FAMILY}
NETWORKS |= {
    name: network for name, network in registry.OURS.items() if name not in ("conv4", "resnet12")
}
"""The CBR family, SmallViT and the CIFAR ResNets by name, called with outputs and channels."""


class CBR(nn.Module):
    """A network of the CBR family: blocks and a linear head (see `cbr`).

    Args:
        kernel: height and width of the convolutions' kernels.
        widths: channels of each block.
        last_pool: whether the last block has a pool, as the others do.
        outputs: of the head.
        channels: of the images.
    """

    UNPADDED = 224  # pixels from which images are not padded

    def __init__(
        self,
        kernel: int,
        widths: tuple[int, ...],
        last_pool: bool,  # noqa: FBT001 (public)
        *,
        outputs: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        outputs = whole_number("outputs", outputs)
        channels = whole_number("channels", channels)
        pairs = zip((channels, *widths), widths, strict=False)  # inputs and outputs of each block
        for number, (before, after) in enumerate(pairs, start=1):
            pool = last_pool or number < len(widths)
            self.add_module(f"block{number}", Block(before, after, kernel, pool=pool))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, outputs)."""
        padded = min(images.shape[-2:]) < self.UNPADDED
        maps = images
        for block in self.children():
            if isinstance(block, Block):
                maps = block(maps, padded=padded)
        return self.head(maps.mean((2, 3)))  # (examples, widths[-1]) -> (examples, outputs)


class Block(nn.Module):
    """Convolution without bias, batch norm and ReLU, then optionally a 3x3 max-pool of stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, maps: Tensor, *, padded: bool = True) -> Tensor:
        """(examples, inputs, height, width) -> (examples, outputs, height', width').

        With padding the convolution keeps height and width, and the pool halves them.
        """
        if padded:
            margin = self.conv.kernel_size[0] // 2
            maps = F.pad(maps, [margin] * 4)
        maps = torch.relu(self.norm(self.conv(maps)))
        if not self.pool:
            return maps
        return F.max_pool2d(maps, 3, stride=2, padding=int(padded))


def build(name: str, outputs: int, channels: int = 3, size: int | None = None) -> nn.Module:
    """Build a classification network by its name, randomly initialised: nothing is downloaded.

    Inception and GoogLeNet are built without their auxiliary heads.

    Args:
        name: one of torchvision's ("resnet50"), of the CBR family ("cbr_small"), "smallvit" or
            "cifar_resnet20" (to 110), of timm's if it is installed ("timm:resnet18"), or
            package.module:callable, which is imported and called with the number of outputs.
        outputs: of the head.
        channels: of the images. If torchvision's network reads another number, the weight of its
            first convolution is replaced (see `read_channels`).
        size: height and width of the images in pixels, for "smallvit" [32]; the others take any.

    Raises:
        ValueError: for a name that does not exist, with near matches.
        ImportError: for a network of timm without timm, with the cure.

    Example:
        >>> build("cbr_tiny", outputs=2, channels=1)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 2])
    """
    if not isinstance(name, str):
        raise TypeError(
            f"the network's name is a {type(name).__name__}; write resnet50, cbr_small or timm:NAME"
        )
    outputs = whole_number("outputs", outputs)
    channels = whole_number("channels", channels)
    if name.startswith("cbr_"):
        _check_family(name.removeprefix("cbr_"))
    options = {"size": size} if name == "smallvit" and size is not None else {}
    model = registry.build(name, outputs, channels, networks=NETWORKS, **options)
    if name in registry.torchvision_names():  # the others are built for `channels`
        read_channels(model, channels)
    return model


@dataclass(frozen=True)
class Build:
    """A function without arguments that builds a network by its name on the command line.

    It is defined here, not in `__main__`, because worker processes cannot import that.
    """

    name: str
    outputs: int
    channels: int
    slim: bool = False
    size: int | None = None

    def __call__(self) -> nn.Module:
        """Build the network from torch's global generator."""
        if self.slim:
            return slim(self.name, "layer2", self.outputs, channels=self.channels)
        if self.name == "cbr-mini":
            return CBR(*MINI, outputs=self.outputs, channels=self.channels)
        name = self.name.replace("cbr-", "cbr_")
        return build(name, self.outputs, self.channels, self.size)


def slim(name: str, through: str, outputs: int, width: float = 0.5, channels: int = 3) -> ResNet:
    """A ResNet of torchvision with fewer channels in its upper stages: Raghu et al. 2019's hybrid.

    Up to `through` it has the layers of the full network, which can take pretrained weights. The
    paper's hybrid is
    `initialize(slim("resnet50", "layer2", outputs), transfusion(weights, through="layer2"))`.

    Args:
        name: "resnet18", "resnet50", "wide_resnet50_2", ...
        through: the last layer that keeps its width: "bn1", "layer1", "layer2" or "layer3".
        outputs: of the head.
        width: the share of the channels that the stages above keep; more than 0, at most 1.
        channels: of the images, as in `build`.

    Raises:
        ValueError: for a network that is no ResNet, another `through`, or another `width`.

    Example:
        >>> slim("resnet18", "layer2", outputs=2).fc
        Linear(in_features=256, out_features=2, bias=True)
    """
    stages = ["bn1", "layer1", "layer2", "layer3", "layer4"]
    if through not in stages[:-1]:
        raise ValueError(
            f"through={through!r}: above it there is no stage to make narrower; name one of"
            f" {', '.join(stages[:-1])}"
        )
    if not isinstance(width, Real) or not 0 < float(width) <= 1:
        raise ValueError(
            f"width={width!r}; it is the share of the channels to keep, more than 0 and at most 1"
        )
    model = build(name, outputs, channels)
    if not isinstance(model, ResNet):
        raise ValueError(
            f"{name!r} is no ResNet of torchvision; slim() takes resnet18 to resnet152 and their"
            " variants"
        )
    # torchvision's `_make_layer` reads the channels that a stage receives from `inplanes`.
    model.inplanes = _channels(getattr(model, through))
    for number in range(stages.index(through) + 1, len(stages)):
        blocks = getattr(model, stages[number])
        # Stage n of a full ResNet has 64 * 2^(n - 1) planes.
        planes = max(1, round(width * 64 * 2 ** (number - 1)))
        stride = 1 if stages[number] == "layer1" else 2
        stage = model._make_layer(type(blocks[0]), planes, len(blocks), stride=stride)
        _initialize(stage)
        setattr(model, stages[number], stage)
    model.fc = nn.Linear(model.inplanes, outputs)
    return model


def read_channels(model: nn.Module, channels: int) -> nn.Module:
    """Let the first convolution of a network read another number of channels, in place.

    The values of the new weight are drawn from those of the old one, which keeps the distribution
    that the network's author chose.

    Args:
        model: the network.
        channels: of the images.

    Returns:
        The same network.

    Raises:
        ValueError: if it has no convolution, or one in groups.

    Example:
        >>> read_channels(nn.Sequential(nn.Conv2d(3, 8, 3)), 1)[0].weight.shape
        torch.Size([8, 1, 3, 3])
    """
    check_network("read_channels()", model)
    channels = whole_number("channels", channels)
    convolutions = [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)
    ]
    if not convolutions:
        raise ValueError(
            f"{type(model).__name__} has no convolution that reads images; build it for {channels}"
            " channels"
        )
    path, conv = convolutions[0]
    if conv.in_channels == channels:
        return model
    if conv.groups != 1:
        raise ValueError(
            f"the first convolution {path} has {conv.groups} groups; build it for"
            f" {conv.in_channels} channels and repeat the image"
        )
    values = conv.weight.detach().flatten()
    shape = (conv.out_channels, channels, *conv.kernel_size)
    # With replacement: the new weight may be larger than the old one.
    chosen = torch.randint(values.numel(), (math.prod(shape),))
    conv.in_channels = channels
    conv.weight = nn.Parameter(values[chosen].view(shape))
    return model


def _channels(stage: nn.Module) -> int:
    """The number of channels that a stage of a ResNet outputs."""
    # The last batch norm of a stage has as many channels as its output.
    *_, last = (module for module in stage.modules() if isinstance(module, nn.BatchNorm2d))
    return last.num_features


def _initialize(stage: nn.Module) -> None:
    """Draw the weights of a stage as torchvision's ResNet does."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
