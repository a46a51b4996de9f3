"""Which layers train, and at which rate.

Frozen layers, the linear probe, the frozen transformer, and a rate per layer for any optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn

from metalearn.network.layers import assign, check_reached, is_inside, owners
from metalearn.network.layers import head as find_head
from metalearn.network.layers import layers as layer_names
from metalearn.network.norm import frozen_statistics, norm_parameters, statistics_of
from metalearn.network.positions import position_tables
from metalearn.runtime.checks import sequence
from transfer.initialisation.strategies import check_network, through_layer

PARTS = ("output", "norms", "input", "positions")
"""What trains in a frozen transformer, in the order of the ablation of Lu et al. 2021."""


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


def frozen_transformer(
    model: nn.Module,
    *,
    head: str | None = None,
    positions: str | None = None,
    parts: Sequence[str] = PARTS,
) -> list[str]:
    """Freeze the attention and feed-forward weights of a transformer.

    What still trains are the normalisation layers' weights and biases, the input (the first layer),
    the output (the head), and the embeddings of positions and classes: bare parameters outside of
    every block, and each `nn.Embedding` whose name says positions (Lu et al. 2021,
    arXiv:2103.05247). A table of tokens that belongs to the body does not train: an `nn.Embedding`
    is the input only if no norm is in the same top module. With L layers of width d that is 4 d L
    numbers of norms, 2 d of the last norm, and those of positions, input and output. In that paper
    input and output start fresh: `metalearn.models.sequence_model` puts them around a body, and
    `initialize(model, {"body": copied(weights), "": fresh()})` starts the body.

    Args:
        model: changed in place.
        head: the path of the head; by default the last Linear or Conv2d.
        positions: the path of a table of positions whose name does not say so.
        parts: what trains, of "output", "norms", "input" and "positions", for the paper's ablation.

    Returns:
        The names of the parameters that still train.

    Raises:
        ValueError: the model has no normalisation layer, or there is no such part.

    Example:
        >>> block = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2))
        >>> frozen_transformer(model)[:4]
        ['0.weight', '0.bias', '1.norm1.weight', '1.norm1.bias']
        >>> frozen_transformer(model, parts=("output",))
        ['2.weight', '2.bias']
    """
    check_network("frozen_transformer()", model, head=head)
    unknown = [
        part for part in sequence("parts", parts, "('output', 'norms')") if part not in PARTS
    ]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r} to train; choose {', '.join(PARTS)}")
    norms = norm_parameters(model)
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no normalisation layer to train; frozen_transformer is for"
            " transformers"
        )
    places = {
        "output": [find_head(model, head)],
        "norms": norms,
        "input": _input(model, norms),
        "positions": position_tables(model, positions),
    }
    trained: list[str] = []
    for part in parts:
        trained += places[part]
    owner = owners(model)
    for name, parameter in model.named_parameters():
        inside = any(is_inside(name, path) for path in trained)
        # A bare parameter belongs to a layer without being inside it.
        bare = "positions" in parts and not is_inside(name, owner[name])
        parameter.requires_grad_(inside or bare)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _input(model: nn.Module, norms: Sequence[str]) -> list[str]:
    """The first layer, unless it is a block, or a table of tokens inside the body."""
    first = layer_names(model)[0]
    # A network of one block may have the whole body as its first layer.
    if any(is_inside(norm, first) for norm in norms):
        return []
    top = first.partition(".")[0]
    in_body = any(is_inside(norm, top) for norm in norms)
    if in_body and isinstance(model.get_submodule(first), nn.Embedding):
        return []
    return [first]


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
