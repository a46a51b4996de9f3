"""Which layers train, and at which rate.

Frozen layers, the linear probe, the frozen transformer, and a rate per layer for any optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import nn

from metalearn.network.layers import assign, check_reached, is_inside, owners
from metalearn.network.layers import head as find_head
from metalearn.network.layers import layers as layer_names
from metalearn.network.norm import frozen_statistics, norm_parameters, statistics_of
from transfer.initialisation.strategies import check_network, through_layer


def freeze(model: nn.Module, through: str | None = None, *, head: str | None = None) -> list[str]:
    """Freeze every layer up to and including `through`, its running statistics too.

    `requires_grad` is off, and batch norm with running statistics keeps them, in training mode as
    well (`metalearn.frozen_statistics`). Batch norm on the current batch's statistics has none to
    keep. A tied parameter is frozen if its first layer is.

    Args:
        model: changed in place.
        through: a module path; None for all but the head.
        head: the path of the head; by default the last Linear or Conv2d.

    Returns:
        The names of the frozen parameters.

    Raises:
        ValueError: the layer does not exist; names near matches.

    Example:
        >>> freeze(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), through="0")
        ['0.weight', '0.bias']
    """
    check_network("freeze()", model, through=through, head=head)
    frozen = set(through_layer(model, through, find_head(model, head)))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad = False
    # The list comes first, since frozen_statistics replaces modules.
    for name, module in list(model.named_modules()):
        if any(f"{name}.{buffer}".lstrip(".") in frozen for buffer in statistics_of(module)):
            frozen_statistics(module)
    return [name for name, _ in model.named_parameters() if name in frozen]


def linear_probe(model: nn.Module, *, head: str | None = None) -> list[str]:
    """Freeze everything but the head, running statistics too.

    The head then reads features that do not change. The body stays in place and runs at every step.

    Args:
        model: changed in place.
        head: the path of the head; by default the last Linear or Conv2d.

    Returns:
        The names of the frozen parameters.

    Example:
        >>> linear_probe(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        ['0.weight', '0.bias']
    """
    return freeze(model, head=head)


def frozen_transformer(model: nn.Module, *, head: str | None = None) -> list[str]:
    """Freeze the attention and feed-forward weights of a transformer.

    What still trains are the normalisation layers' weights and biases, the input (the first layer),
    the output (the head), and the embeddings of positions and classes, which are bare parameters
    outside of every block (Lu et al. 2021, arXiv:2103.05247). In that paper input and output start
    fresh: `initialize(model, {"": copied(weights), layers(model)[0]: fresh()})`.

    Args:
        model: changed in place.
        head: the path of the head; by default the last Linear or Conv2d.

    Returns:
        The names of the parameters that still train.

    Raises:
        ValueError: the model has no normalisation layer.

    Example:
        >>> block = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
        >>> frozen_transformer(nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2)))[:4]
        ['0.weight', '0.bias', '1.norm1.weight', '1.norm1.bias']
    """
    check_network("frozen_transformer()", model, head=head)
    norms = norm_parameters(model)
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no normalisation layer to train; frozen_transformer is for"
            " transformers"
        )
    trained = [layer_names(model)[0], find_head(model, head), *norms]
    owner = owners(model)
    for name, parameter in model.named_parameters():
        inside = any(is_inside(name, path) for path in trained)
        # A bare parameter belongs to a layer without being inside it.
        parameter.requires_grad_(inside or not is_inside(name, owner[name]))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def parameter_groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """A learning rate per layer, as the parameter groups that any torch optimizer takes.

    Args:
        model: the network.
        rates: {module or parameter path: rate}, the longest match winning: `{"": 1e-3, "layer1":
            1e-4}`. A parameter that has no rate, or is frozen, is in no group and does not move.

    Returns:
        A group for each rate.

    Raises:
        TypeError: `rates` is no dictionary.
        ValueError: a layer does not exist (names near matches), a rate is negative or not finite,
            or nothing is left to train.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> groups = parameter_groups(model, {"": 1e-3, "0": 1e-4})
        >>> [(group["lr"], len(group["params"])) for group in groups]
        [(0.0001, 2), (0.001, 2)]
    """
    check_network("parameter_groups()", model)
    if not isinstance(rates, Mapping):
        raise TypeError(
            f"rates={rates!r} is a {type(rates).__name__}; give a dictionary, {{'': 1e-3, 'layer1':"
            " 1e-4}"
        )
    for path, rate in rates.items():
        if not isinstance(rate, Real) or not 0 <= float(rate) < math.inf:
            raise ValueError(
                f"the rate of {path!r} is {rate}; a rate is a finite number, zero or more"
            )
    # A tied parameter has one name here, so it is in one group.
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    groups: dict[float, list[nn.Parameter]] = {}
    assigned = assign(model, rates)
    check_reached(model, rates, "rates")
    for name, rate in assigned.items():
        if name in parameters:
            groups.setdefault(rate, []).append(parameters[name])
    if not groups:
        raise ValueError(
            f"the rates {dict(rates)} reach no parameter that trains; name a layer that is not"
            " frozen"
        )
    return [{"params": members, "lr": rate} for rate, members in groups.items()]
