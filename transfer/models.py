"""The networks of the Transfusion paper, and any classification network of torchvision or timm by
name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet

from metalearn.models import registry
from metalearn.runtime.checks import whole_number
from transfer.initialisation.strategies import check_network


class _Family(NamedTuple):
    kernel: int
    widths: tuple[int, ...]
    last_pool: bool = True


FAMILY = {
    "large_t": _Family(7, (32, 64, 128, 256, 512), last_pool=False),
    "large_w": _Family(7, (64, 128, 256, 512)),
    "small": _Family(7, (32, 64, 128, 256)),
    "tiny": _Family(5, (32, 64, 128, 256)),
}


def cbr(name: str, outputs: int, channels: int = 3) -> CBR:
    """A network of the CBR family, "large_t", "large_w", "small" or "tiny", for images of any size
    (Raghu et al. 2019, arXiv:1902.07208).

    Blocks of convolution, batch norm, ReLU and 3x3 max-pool of stride 2, then a mean over space and
    a linear head: layers block1 to block4 (block5 of "large_t", which has no pool) and head.
    Kernels are 7x7, of "tiny" 5x5.

    The paper's parameter counts leave out the first convolution and the batch norms, and with 5
    outputs hold exactly; they give "tiny" the widths 32 to 256, where its text says 64 to 512: here
    the counts are followed. It does not say how convolutions are padded: here images of 224 pixels
    and more are not, and smaller ones are, convolutions and pools, so that they keep their size and
    do not vanish.

    Raises ValueError, with those there are, for another name.

    Example:
        >>> cbr("tiny", outputs=2, channels=1)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 2])
    """
    if not isinstance(name, str) or name not in FAMILY:
        raise ValueError(f"there is no CBR network {name!r}; there are {', '.join(FAMILY)}")
    return CBR(*FAMILY[name], outputs=outputs, channels=channels)


class CBR(nn.Module):
    """What `cbr` builds: blocks of the given widths, and a head.

    `last_pool` says whether the last block has a pool.
    """

    UNPADDED = 224

    def __init__(
        self,
        kernel: int,
        widths: tuple[int, ...],
        last_pool: bool,
        *,
        outputs: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        outputs = whole_number("outputs", outputs)
        channels = whole_number("channels", channels)
        for number, (before, after) in enumerate(
            zip((channels, *widths), widths, strict=False), start=1
        ):
            self.add_module(
                f"block{number}",
                Block(before, after, kernel, pool=last_pool or number < len(widths)),
            )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, height, width) -> logits (examples, outputs)."""
        padded = min(images.shape[-2:]) < self.UNPADDED
        maps = images
        for block in self.children():
            if isinstance(block, Block):
                maps = block(maps, padded)
        return self.head(maps.mean((2, 3)))


class Block(nn.Module):
    """Convolution without bias, batch norm, ReLU and, where asked for, a 3x3 max-pool of stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, maps: Tensor, padded: bool = True) -> Tensor:
        """(examples, inputs, height, width) -> (examples, outputs, ...); `padded` keeps height and
        width, but for the pool's halving.
        """
        margin = self.conv.kernel_size[0] // 2
        maps = self.conv(F.pad(maps, [margin] * 4) if padded else maps)
        maps = torch.relu(self.norm(maps))
        return F.max_pool2d(maps, 3, stride=2, padding=int(padded)) if self.pool else maps


def build(name: str, outputs: int, channels: int = 3) -> nn.Module:
    """A classification network by name, from its own random initialisation: nothing is downloaded.

    Args:
        name: one of torchvision's ("resnet50"), of the CBR family ("cbr_small"), of timm's if that
            is installed ("timm:resnet18"), or package.module:callable, which is imported and called
            with the number of outputs.
        outputs: of the head.
        channels: of the images. Where torchvision's network reads another number, its first
            convolution is replaced by one whose values are drawn from those of the old one.
            Inception and GoogLeNet are built without their auxiliary heads.

    Raises ValueError, with near matches, for a name that does not exist; ImportError, with the
    cure, for timm's without timm.

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
        return cbr(name.removeprefix("cbr_"), outputs, channels)
    model = registry.build(name, outputs, channels, own=[f"cbr_{member}" for member in FAMILY])
    torchvisions = not registry.runs_code(name) and not name.startswith(registry.TIMM)
    return read_channels(model, channels) if torchvisions else model


@dataclass(frozen=True)
class Build:
    """Builds a network by name.

    It is defined here, not in `__main__`, because worker processes cannot import that.
    """

    name: str
    outputs: int
    channels: int
    slim: bool = False

    def __call__(self) -> nn.Module:
        """The network, drawn from torch's global generator."""
        if self.slim:
            return slim(self.name, "layer2", self.outputs, channels=self.channels)
        if self.name == "cbr-mini":
            return CBR(5, (8, 16, 32, 64), True, outputs=self.outputs, channels=self.channels)
        return build(self.name.replace("cbr-", "cbr_"), self.outputs, self.channels)


def slim(name: str, through: str, outputs: int, width: float = 0.5, channels: int = 3) -> ResNet:
    """A ResNet of torchvision whose stages above `through` have `width` times the channels (Raghu
    et al. 2019's hybrid).

    Up to `through` it has the layers of the full network, which take their weights: the paper's is
    `initialize(slim("resnet50", "layer2", outputs), transfusion(weights, through="layer2"))`.

    Args:
        name: "resnet18", "resnet50", "wide_resnet50_2", ...
        through: the last layer that is left as it is: "bn1", "layer1", "layer2" or "layer3".
        width: more than 0, at most 1.
        channels: of the images, as in `build`.

    Raises ValueError for a network that is no ResNet, another `through`, or another `width`.

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
            f"width={width!r}; it is the part of the channels that is kept, more than 0 and at"
            " most 1"
        )
    model = build(name, outputs, channels)
    if not isinstance(model, ResNet):
        raise ValueError(
            f"{name!r} is no ResNet of torchvision; slim() makes hybrids of resnet18 to resnet152"
            " and their kin"
        )
    kept = stages.index(through)
    model.inplanes = _channels(getattr(model, through))
    for number, stage in list(enumerate(stages))[kept + 1 :]:
        blocks = getattr(model, stage)
        planes = max(1, round(width * 64 * 2 ** (number - 1)))
        narrow = model._make_layer(
            type(blocks[0]), planes, len(blocks), stride=1 if number == 1 else 2
        )
        _initialized(narrow)
        setattr(model, stage, narrow)
    model.fc = nn.Linear(model.inplanes, outputs)
    return model


def read_channels(model: nn.Module, channels: int) -> nn.Module:
    """Let the first convolution of `model` read images of `channels` channels; changes the model in
    place and returns it.

    Values of the new weight are drawn from those of the old one, which keeps the distribution that
    the network's author chose.

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
    old = conv.weight.detach()
    shape = (conv.out_channels, channels, *conv.kernel_size)
    conv.in_channels = channels
    conv.weight = nn.Parameter(
        old.flatten()[torch.randint(old.numel(), (math.prod(shape),))].view(shape)
    )
    return model


def _channels(stage: nn.Module) -> int:
    """How many channels a stage of a ResNet puts out."""
    *_, last = (module for module in stage.modules() if isinstance(module, nn.BatchNorm2d))
    return last.num_features


def _initialized(stage: nn.Module) -> None:
    """As torchvision's ResNet initialises itself."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
