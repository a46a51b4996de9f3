"""The tensors of a network in the order of its layers, from one end up to a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from metalearn.network.layers import is_inside, owners, resolve
from metalearn.network.layers import layers as layer_names

from .weights import aliases


def check_network(call: str, model: object, **paths: object) -> None:
    """Check the network and the paths that a function was given.

    Args:
        call: the function, for the message.
        model: the network.
        paths: {argument: path of a layer, or None}.

    Raises:
        TypeError: `model` is no module, or a path is no string.
        ValueError: a lazy parameter has no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{call} got a {type(model).__name__} for a network; its first argument is a"
            " torch.nn.Module"
        )
    for name, path in paths.items():
        if not (path is None or isinstance(path, str)):
            raise TypeError(
                f"{name}={path!r} is a {type(path).__name__}; name a layer by its path:"
                f" {', '.join(layer_names(model))}"
            )
    # A lazy layer has parameters without a shape until it has seen an input.
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"{name} has no shape yet; run the network once on an example first: model(inputs)"
            )


def ordered(model: nn.Module) -> list[str]:
    """The parameters and saved buffers of `model`, layer by layer from the bottom.

    Example:
        >>> ordered(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)))
        ['0.weight', '1.weight', '1.bias']
    """
    # By layer first: the state dict has a bare parameter before the layers that it belongs to.
    layer_numbers = {layer: number for number, layer in enumerate(layer_names(model))}
    numbers = {name: number for number, name in enumerate(model.state_dict())}
    owner = owners(model)
    return sorted(aliases(model), key=lambda name: (layer_numbers[owner[name]], numbers[name]))


def through_layer(model: nn.Module, through: str | None, head: str) -> list[str]:
    """The tensors of every layer up to and including `through`.

    Args:
        model: the network.
        through: a module path; None for all layers.
        head: the path of the head, which is left out unless `through` is in it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> through_layer(model, "0", head="2")
        ['0.weight', '0.bias']
    """
    check_network("through_layer()", model, through=through)
    names = ordered(model)  # from the bottom to the top
    if through is not None:
        names = names[: _places(model, through, names)[-1] + 1]
        if is_inside(through, head):
            return names
    return [name for name in names if not is_inside(name, head)]


def down_to_layer(model: nn.Module, down_to: str, head: str) -> list[str]:
    """The tensors of every layer from the last one before the head down to `down_to`.

    Args:
        model: the network.
        down_to: a module path.
        head: the path of the head, which is left out unless `down_to` is in it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> down_to_layer(model, "1", head="2")
        ['1.weight', '1.bias']
    """
    check_network("down_to_layer()", model, down_to=down_to)
    names = ordered(model)
    names = names[_places(model, down_to, names)[0] :]
    if is_inside(down_to, head):
        return names
    return [name for name in names if not is_inside(name, head)]


def _places(model: nn.Module, path: str, names: Sequence[str]) -> list[int]:
    """The positions in `names` of the tensors of a layer."""
    known = aliases(model)  # a tied tensor has several names
    resolve(model, path)  # raises with near matches if there is no such layer
    places = []
    for place, name in enumerate(names):
        if any(is_inside(alias, path) for alias in known[name]):
            places.append(place)
    if not places:
        raise ValueError(
            f"{path!r} holds no tensors to copy; name a layer that does:"
            f" {', '.join(layer_names(model))}"
        )
    return places
