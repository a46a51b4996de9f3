"""Similarity of two networks layer by layer, and of a layer's weights before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.analysis import Profile, compare_layers
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, map_tensors
from metalearn.network.layers import layers as layer_names
from metalearn.network.layers import owners
from metalearn.network.modes import evaluation_mode
from transfer.comparison.results import LayerRetention

Weights: TypeAlias = Mapping[str, Tensor]
Network: TypeAlias = tuple[nn.Module, Weights]
"""A module, and the weights and buffers that replace its own by name."""

ROWS = 5_000  # examples times positions that layers are compared over
DRAWS = 10  # shuffles that the chance level of one run is measured with
FILTERS = 16  # first-layer filters kept for the picture


def profile(
    first: Network,
    second: Network,
    probe: Inputs,
    *,
    layers: Sequence[str] | None,
    measure: str,
    draws: int = 0,
) -> Profile:
    """Compare two networks layer by layer on the probe."""
    # On the CPU, where the weights of starts and ends are.
    probe = map_tensors(Tensor.cpu, probe)
    options: dict[str, Any] = {"measure": measure, "rows": ROWS, "draws": draws}
    if isinstance(probe, Tensor):
        return compare_layers(first, second, probe, layers, **options)
    # compare_layers takes a tuple for a loader, so networks of several inputs are run here.
    names = layers
    if not names:
        others = layer_names(second[0])
        names = [name for name in layer_names(first[0]) if name in others]
    return compare_layers(outputs(first, names, probe), outputs(second, names, probe), **options)


def outputs(network: Network, names: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """The outputs of the named layers."""
    model, weights = network
    positional: tuple[Tensor, ...] = ()
    named: dict[str, Tensor] = {}
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    elif isinstance(inputs, Tensor):
        positional = (inputs,)
    else:
        positional = tuple(inputs)
    with evaluation_mode([model]), torch.no_grad(), representations(model, names) as results:
        functional_call(model, dict(weights), positional, named)
    return results


def retained(
    model: nn.Module,
    before: Weights,
    after: Weights,
    probe: Inputs,
    *,
    layers: Sequence[str] | None,
    measure: str,
) -> list[LayerRetention]:
    """How much of its start each layer kept: of its outputs on the probe, and of its weights."""
    similarities = profile(
        (model, before), (model, after), probe, layers=layers, measure=measure, draws=DRAWS
    )
    correlations = weight_correlations(model, before, after)
    return [
        LayerRetention(
            row.layer,
            row.similarity,
            row.floor.upper,
            correlations.get(row.layer, math.nan),
            row.note,
        )
        for row in similarities.layers
    ]


def weight_correlations(model: nn.Module, before: Weights, after: Weights) -> dict[str, float]:
    """Pearson's correlation of each layer's weights before and after, without biases and norms."""
    owner = owners(model)
    # Biases and the weights of norms have one dimension.
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    correlations = {}
    for layer in layer_names(model):
        names = [name for name in matrices if owner[name] == layer]
        if not names:
            continue
        sides = [
            torch.cat([side[name].flatten() for name in names]).double() for side in (before, after)
        ]
        values = torch.stack(sides)  # (before and after, weights)
        centred = values - values.mean(1, keepdim=True)
        # r = <b - mean(b), a - mean(a)> / (|b - mean(b)| |a - mean(a)|)
        norms = float(centred.norm(dim=1).prod())
        correlations[layer] = float(centred[0] @ centred[1]) / norms if norms else math.nan
    return correlations


def first_filters(model: nn.Module, before: Weights, after: Weights) -> Tensor | None:
    """Filters of the first convolution before and after; None if the network has none."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            name = f"{path}.weight".lstrip(".")  # a network that is the convolution has no path
            # (before and after, filters, channels, height, width)
            return torch.stack([before[name][:FILTERS], after[name][:FILTERS]])
    return None
