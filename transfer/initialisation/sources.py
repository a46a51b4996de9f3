"""What one tensor starts from: as built, copied, drawn, shuffled, or a Gabor filter.

A source is a callable from a `Slot` and a generator to a `Start`; write your own as such a
callable. The sources here are small values that compare and print. Their names are in lower case
because they read as verbs: `copied(weights)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.network.norm import is_norm
from metalearn.runtime.checks import positive_number

from .weights import Pretrained, Weights, read


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer that waits for its start.

    Attributes:
        name: its path in the network.
        tensor: as built.
        module: that holds it.
        given: the tensor of the weights for it; None if they have none.
        first: whether it is the weight of the network's first convolution.
    """

    name: str
    tensor: Tensor
    module: nn.Module
    given: Tensor | None = None
    first: bool = False

    @property
    def drawable(self) -> bool:
        """Whether sources that keep only statistics draw it: parameters outside of norms."""
        return isinstance(self.tensor, nn.Parameter) and not is_norm(self.module)


class Start(NamedTuple):
    """What a tensor starts from.

    Attributes:
        value: its new values; None leaves it as built.
        how: "copied", "drawn", "fresh" or "skipped".
        note: why.
        mean: of the distribution that it was drawn from, if that is known; otherwise the report has
            the mean of its values.
        variance: the same.
    """

    value: Tensor | None
    how: str
    note: str = ""
    mean: float | None = None
    variance: float | None = None


class Unfit(ValueError):
    """A tensor that the weights cannot start: missing there, or of another shape."""


AS_BUILT = "normalisation and buffers stay as built"

Source: TypeAlias = Callable[[Slot, torch.Generator], Start]


@dataclass(frozen=True)
class fresh:
    """Leave the tensor as the model was built."""

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor."""
        return Start(None, "fresh")


@dataclass(frozen=True, init=False, repr=False)
class FromWeights:
    """A source that has weights; they are read when it is made."""

    weights: Pretrained

    def __init__(self, weights: Weights) -> None:
        object.__setattr__(self, "weights", read(weights))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weights})"

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor."""
        raise NotImplementedError


@dataclass(frozen=True, init=False, repr=False)
class copied(FromWeights):
    """Start from the pretrained tensor itself: parameters and buffers.

    Args:
        weights: anything that `transfer.initialisation.weights.read` takes.
        average_channels: if the first convolution reads another number of channels C than the
            pretrained one, start it from `w[:, j] = (1/C) sum_c pretrained[:, c]` for every j. A
            grey image then gives the same output as when it was repeated over the old channels.
            Otherwise another number of channels is an error.
    """

    average_channels: bool = False

    def __init__(
        self,
        weights: Weights,
        average_channels: bool = False,  # noqa: FBT001, FBT002 (public, and given by position)
    ) -> None:
        super().__init__(weights)
        object.__setattr__(self, "average_channels", average_channels)

    def __repr__(self) -> str:
        option = ", average_channels=True" if self.average_channels else ""
        return f"copied({self.weights}{option})"

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor; raises Unfit if the weights have none of its shape."""
        if slot.given is None and slot.name.endswith("num_batches_tracked"):
            return Start(None, "skipped", "not in the weights; only a momentum of None reads it")
        given = _given(slot)
        if given.shape == slot.tensor.shape:
            return Start(given, "copied")
        # A convolution (filters, channels, height, width) may differ in its channels alone.
        if slot.first and _but_channels(given) == _but_channels(slot.tensor):
            if not self.average_channels:
                raise Unfit(
                    f"the first convolution {slot.name} reads {given.shape[1]} channels in the"
                    f" weights and {slot.tensor.shape[1]} here: build the model with the same"
                    " channels (and repeat grey images), or pass average_channels=True"
                )
            # w[:, j] = (1/C) sum_c pretrained[:, c]
            value = (given.sum(1, keepdim=True) / slot.tensor.shape[1]).expand_as(slot.tensor)
            return Start(
                value, "copied", f"{given.shape[1]} channels averaged into {slot.tensor.shape[1]}"
            )
        raise Unfit(
            f"{slot.name} is {tuple(given.shape)} in the weights and {tuple(slot.tensor.shape)}"
            " here"
        )


@dataclass(frozen=True, init=False, repr=False)
class mean_var(FromWeights):
    """Start from normal draws with the pretrained tensor's mean and variance.

    They keep its scale and none of its features: `w_i ~ N(mean(pretrained), var(pretrained))`,
    independently, for each tensor by itself (Mean-Var initialisation, Raghu et al. 2019,
    arXiv:1902.07208). The variance divides by the number of values. All parameters are drawn except
    those of normalisation layers, which stay as built, with their buffers; the paper says nothing
    of these. A tensor of another shape is drawn in its own shape.
    """

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor; raises Unfit if it is not in the weights."""
        if not slot.drawable:
            return Start(None, "skipped", AS_BUILT)
        given = _given(slot)
        mean = given.double().mean().item()
        variance = given.double().var(correction=0).item()
        # w_i = mean + std z_i, z_i ~ N(0, 1)
        value = mean + math.sqrt(variance) * torch.randn(
            slot.tensor.shape, generator=generator, dtype=torch.float64
        )
        note = "" if given.shape == slot.tensor.shape else f"{tuple(given.shape)} in the weights"
        return Start(value, "drawn", note, mean, variance)


@dataclass(frozen=True, init=False, repr=False)
class permuted(FromWeights):
    """Start from the pretrained tensor's own values in random places.

    They keep exactly its distribution and none of its features. As with `mean_var`, normalisation
    layers stay as built.
    """

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor; raises Unfit if the weights have none of its size."""
        if not slot.drawable:
            return Start(None, "skipped", AS_BUILT)
        given = _given(slot)
        if given.numel() != slot.tensor.numel():
            raise Unfit(
                f"{slot.name} is {tuple(given.shape)} in the weights and {tuple(slot.tensor.shape)}"
                " here"
            )
        # The numbers of values must agree, not the shapes.
        order = torch.randperm(given.numel(), generator=generator)
        return Start(given.flatten()[order.to(given.device)].view(slot.tensor.shape), "drawn")


@dataclass(frozen=True)
class normal:
    """Start from N(0, std^2), which GPT-2's own initialisation is for std = 0.02.

    As with `mean_var`, normalisation layers stay as built. Vectors (biases) become zero.
    """

    std: float = 0.02

    def __post_init__(self) -> None:
        positive_number("std", self.std)

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor."""
        return _matrix(slot, self.std, generator)


@dataclass(frozen=True)
class xavier:
    """Start from Xavier's normal distribution: variance `gain^2 * 2 / (inputs + outputs)`.

    Glorot and Bengio 2010. As with `mean_var`, normalisation layers stay as built. Vectors (biases)
    become zero.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        positive_number("gain", self.gain)

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor."""
        if slot.tensor.ndim < 2:
            return _matrix(slot, 1.0, generator)
        # (outputs, inputs, *kernel): every place of a kernel counts as inputs and as outputs.
        outputs, inputs = slot.tensor.shape[:2]
        places = slot.tensor[0, 0].numel()
        return _matrix(slot, self.gain * math.sqrt(2 / (places * (inputs + outputs))), generator)


def _matrix(slot: Slot, std: float, generator: torch.Generator) -> Start:
    """Normal draws for a matrix or a kernel, zeros for a vector."""
    if not slot.drawable:
        return Start(None, "skipped", AS_BUILT)
    if slot.tensor.ndim < 2:
        return Start(torch.zeros(slot.tensor.shape), "drawn", "zero", 0.0, 0.0)
    draws = torch.randn(slot.tensor.shape, generator=generator, dtype=torch.float64)
    return Start(std * draws, "drawn", "", 0.0, std**2)


@dataclass(frozen=True)
class gabor:
    """Start the first convolution from synthetic Gabor filters; other tensors stay as built.

    Raghu et al. 2019: `g(x, y) = exp(-(u^2 + v^2) / (2 s^2)) cos(2 pi u / l + p)` with
    `u = x cos t + y sin t` and `v = -x sin t + y cos t`. Orientation t and phase p are uniform. The
    wavelength l is log-uniform from max(2, k/4) to k pixels for a kernel of k, and `s = 0.4 l` (a
    bandwidth of 1.5 octaves). All input channels have the same filter. Each filter has mean 0. Its
    norm gives the tensor the standard deviation it was built with, so only the shape of the filters
    changes, not their scale.
    """

    def __call__(self, slot: Slot, generator: torch.Generator) -> Start:
        """The start of one tensor; raises ValueError if the kernel is smaller than 3 x 3."""
        if not slot.first:
            return Start(None, "skipped", "Gabor filters are for the first convolution")
        filters, channels, height, width = slot.tensor.shape
        if min(height, width) < 3:
            raise ValueError(
                f"{slot.name} has a kernel of {height} x {width}; a Gabor filter needs at least"
                " 3 x 3"
            )
        bank = _filters(filters, height, width, generator)  # (filters, height, width)
        bank = bank[:, None].expand(-1, channels, -1, -1)
        return Start(bank * slot.tensor.detach().double().std(correction=0).cpu(), "drawn")


def _filters(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Gabor filters (count, height, width), each of mean 0 and mean square 1."""
    # (count, 1, 1) each
    orientation, phase, scale = torch.rand(3, count, 1, 1, generator=generator, dtype=torch.float64)
    size = min(height, width)
    shortest = max(2.0, size / 4)
    # log l uniform from log(shortest) to log(size)
    wavelength = shortest * (size / shortest) ** scale
    angle = math.pi * orientation
    # Positions in pixels from the centre: (height, 1) and (width,).
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    u = x * angle.cos() + y * angle.sin()  # (count, height, width)
    v = y * angle.cos() - x * angle.sin()
    waves = torch.exp(-(u**2 + v**2) / (2 * (0.4 * wavelength) ** 2)) * torch.cos(
        2 * math.pi * (u / wavelength + phase)
    )
    # Mean 0 and mean square 1 over each filter's positions.
    waves = waves - waves.mean((1, 2), keepdim=True)
    return waves / waves.square().mean((1, 2), keepdim=True).sqrt()


def _given(slot: Slot) -> Tensor:
    if slot.given is None:
        raise Unfit(f"{slot.name} is not in the weights")
    return slot.given


def _but_channels(tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape[0], *tensor.shape[2:]
