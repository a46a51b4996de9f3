"""What each layer of a network starts from: strategies for a whole network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .initialize import Strategy, initialize
from .order import check_network, down_to_layer, ordered, through_layer
from .report import Initialisation, Row
from .sources import Source, copied, fresh
from .weights import Pretrained, Weights, read

__all__ = [
    "Initialisation",
    "Row",
    "Strategy",
    "check_network",
    "down_to_layer",
    "everywhere",
    "initialize",
    "ordered",
    "through_layer",
    "transfusion",
]


@dataclass(frozen=True, repr=False)
class everywhere:
    """Every layer starts from one source.

    Args:
        source: such as `fresh()` or `mean_var(weights)`.
        head: whether the head does, too; otherwise it stays fresh.
    """

    source: Source
    head: bool = False

    def __repr__(self) -> str:
        return f"everywhere({self.source}{', head=True' if self.head else ''})"

    def __call__(self, model: nn.Module, head: str) -> dict[str, Source]:
        """The mapping from paths to sources that `initialize` takes."""
        sources = {"": self.source}  # "" is a path above every tensor
        if self.head:
            sources[head] = self.source
        return sources


@dataclass(frozen=True, init=False, repr=False)
class transfusion:
    """Copy parameters and buffers of every layer up to and including one; the rest is fresh.

    Raghu et al. 2019 (arXiv:1902.07208). Layers are in order of registration. The paper's conv1 of
    a ResNet is `through="bn1"`.

    Args:
        weights: a path, a state dict, a model or learner, or a torchvision `Weights` member; see
            `transfer.initialisation.weights.read`.
        through: a module path. None copies all but the head; naming the head copies it too.
        down_to: instead of `through`, copy from the top: every layer from this one to the last
            before the head.
        average_channels: see `copied`.

    Raises:
        ValueError: both `through` and `down_to` are given, or the weights cannot be read.
    """

    weights: Pretrained
    through: str | None = None
    down_to: str | None = None
    average_channels: bool = False

    def __init__(
        self,
        weights: Weights,
        through: str | None = None,
        *,
        down_to: str | None = None,
        average_channels: bool = False,
    ) -> None:
        if through is not None and down_to is not None:
            raise ValueError(
                f"through={through!r} copies from the bottom and down_to={down_to!r} from the top;"
                " name one of the two"
            )
        # A frozen dataclass is set through object.
        object.__setattr__(self, "weights", read(weights))
        object.__setattr__(self, "through", through)
        object.__setattr__(self, "down_to", down_to)
        object.__setattr__(self, "average_channels", average_channels)

    def __repr__(self) -> str:
        arguments = [str(self.weights)]
        for name in ("through", "down_to", "average_channels"):
            value = getattr(self, name)
            if value:
                arguments.append(f"{name}={value!r}")
        return f"transfusion({', '.join(arguments)})"

    def __call__(self, model: nn.Module, head: str) -> dict[str, Source]:
        """The mapping from tensors to sources that `initialize` takes."""
        if self.down_to is None:
            names = set(through_layer(model, self.through, head))
        else:
            names = set(down_to_layer(model, self.down_to, head))
        # Every tensor is named, so the mapping decides about the head, too.
        source = copied(self.weights, self.average_channels)
        return {name: source if name in names else fresh() for name in ordered(model)}
