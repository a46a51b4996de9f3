"""Weight-standardised convolutions: networks without norms, whose examples never meet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# relu(z) of a standard normal z has variance (1 - 1/pi) / 2; times this gain, variance 1.
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 / fan-in in every output channel.

    `gain * (W - mean) / (std * sqrt(fan_in))` (Qiao et al. 2019, arXiv:1903.10520; Brock et al.
    2021, arXiv:2101.08692), with mean and std over a channel's fan-in. Independent inputs of
    variance 1 give outputs of variance gain², whatever their mean. Unlike batch norm nothing
    depends on the other examples of the batch.

    The arguments are those of `nn.Conv2d`.

    Attributes:
        gain: (outputs, 1, 1, 1), 1 at first.

    Raises:
        ValueError: one weight an output channel: it has no variance.

    Example:
        >>> convolution = StandardisedConv2d(16, 8, 3)
        >>> weight = convolution.standardised()
        >>> round(weight.mean().item(), 4) + 0.0, round(weight.square().sum().item(), 3)
        (0.0, 8.0)
    """

    def __init__(self, *arguments: int, **options: int) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        if self.weight[0].numel() < 2:
            raise ValueError(
                "a convolution of one weight an output channel cannot be standardised; take a"
                " larger kernel, or more input channels"
            )
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels, 1, 1, 1))

    def standardised(self) -> Tensor:
        """The weight that the convolution uses, (outputs, inputs, height, width)."""
        fan_in = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        # The bound keeps a constant channel finite.
        scale = (fan_in * variance).clamp(min=1e-8).rsqrt()
        return (self.weight - mean) * scale * self.gain

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, inputs, height, width) -> (examples, outputs, ...)."""
        return F.conv2d(
            maps,
            self.standardised(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class StandardisedBlock(nn.Module):
    """A standardised convolution, max-pool and ReLU of gain; without a pool, a stride of 2.

    Args:
        inputs: channels.
        outputs: channels.
        pool: whether to pool by 2.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = StandardisedConv2d(inputs, outputs, 3, stride=1 if pool else 2, padding=1)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> (examples, outputs, height / 2, width / 2)."""
        return RELU_GAIN * torch.relu(self.pool(self.conv(maps)))
