"""Layers put back to what they were before a later task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from metalearn.network.layers import body, is_inside
from transfer.initialisation.order import ordered, through_layer
from transfer.initialisation.sources import copied
from transfer.initialisation.strategies import initialize

Weights = Mapping[str, Tensor]


class Group(NamedTuple):
    """A layer, and the tensors that are put back with it.

    Attributes:
        layer: its path.
        names: of its parameters and buffers, and of those between the layer below and it.
    """

    layer: str
    names: tuple[str, ...]


def layer_groups(
    model: nn.Module, head: str, layers: Sequence[str] | None = None
) -> tuple[Group, ...]:
    """The tensors of the body, divided among layers from the bottom to the top.

    Args:
        model: the network.
        head: the path of the head, which is in no group.
        layers: paths in the order of registration; by default all layers of the body. What lies
            between two of them goes with the upper one, and what lies above all with the last.

    Raises:
        ValueError: a layer does not exist, holds no tensors, is the head, or is out of order.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> [(group.layer, len(group.names)) for group in layer_groups(model, "2", ["1"])]
        [('1', 4)]
    """
    chosen = list(body(model, head) if layers is None else layers)
    if not chosen:
        raise ValueError("there is no layer to study; name some with layers=['block1', ...]")
    names = [name for name in ordered(model) if not is_inside(name, head)]
    groups = []
    taken: set[str] = set()
    for layer in chosen:
        if is_inside(layer, head):
            raise ValueError(f"layers= names {layer!r}, the head, which each task has for itself")
        below = [name for name in through_layer(model, layer, head) if name not in taken]
        if not below:
            raise ValueError(
                f"layers={chosen} are not in the order of the network: {layer!r} lies below an"
                " earlier one; list them from the bottom to the top"
            )
        groups.append(Group(layer, tuple(below)))
        taken.update(below)
    above = tuple(name for name in names if name not in taken)
    groups[-1] = Group(groups[-1].layer, groups[-1].names + above)
    return tuple(groups)


def reset(
    model: nn.Module, after: Weights, before: Weights, names: Sequence[str] | set[str], head: str
) -> nn.Module:
    """Give a network the weights of `after`, and those of `before` for some tensors, in place.

    No layer is trained to fit the parts together (Ramasesh et al. 2021, arXiv:2007.07400).

    Args:
        model: the network.
        after: its weights after a later task.
        before: its weights before it.
        names: the tensors to put back.
        head: the path of the head.

    Returns:
        The same network.
    """
    sources = {True: copied(before), False: copied(after)}
    chosen = set(names)
    # A strategy that names every tensor decides about the head, too.
    initialize(model, {name: sources[name in chosen] for name in ordered(model)}, head=head)
    return model
