"""What one step on a task does to the loss of another, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.episodes import Examples
from metalearn.network.layers import head as find_head
from metalearn.network.layers import is_inside, owners
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.tables import Table, Tabular

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerInterference:
    """One layer.

    Attributes:
        layer: its name.
        product: the inner product of both gradients of its parameters.
        cosine: the same, divided by both norms; NaN if a gradient is zero.
        norms: of both gradients.
    """

    layer: str
    product: float
    cosine: float
    norms: tuple[float, float]


@dataclass(frozen=True)
class Interference(Tabular):
    """The inner product of two tasks' gradients, split over layers; prints as a table.

    Attributes:
        layers: the rows, in order.
    """

    layers: tuple[LayerInterference, ...]

    def __getitem__(self, layer: str) -> LayerInterference:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(f"no layer {layer!r}; there are {', '.join(r.layer for r in self.layers)}")

    @property
    def product(self) -> float:
        """The inner product over all layers: minus the change of the other loss, per unit rate."""
        return sum(row.product for row in self.layers)

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer."""
        return [{"layer": r.layer, "product": r.product, "cosine": r.cosine} for r in self.layers]

    def table(self) -> Table:
        """The rows as text, with the whole inner product below."""
        rows = [(row.layer, f"{row.product:.3g}", f"{row.cosine:.3f}") for row in self.layers]
        note = (
            f"(all layers: {self.product:.3g}; a step of rate lr on one task changes the loss of"
            " the other by -lr times the product, to first order)"
        )
        return Table(("layer", "product", "cosine"), rows, note=note)

    def __str__(self) -> str:
        return str(self.table())


def interference(
    model: nn.Module,
    first: Examples,
    second: Examples,
    *,
    heads: tuple[Weights, Weights] | None = None,
    head: str | None = None,
) -> Interference:
    """The inner product of the gradients of two tasks' losses, layer by layer.

    To first order, a step of rate lr on the second task changes the loss of the first by
    `-lr <g_1, g_2>`, which is a sum over layers: a negative product is forgetting. For a linear
    layer with inputs phi and errors e it is `mean_ij (e_i . e_j) (phi_i . phi_j + 1)`: without an
    overlap of features there is none.

    Args:
        model: the network, in evaluation mode while this runs.
        first: examples of a task, as the network takes them, with integer targets.
        second: examples of another.
        heads: with a head for each task, the head's tensors in either, `{name in the model:
            tensor}`; the head then belongs to no both, and is left out.
        head: the path of the head; by default the last Linear or Conv2d.

    Returns:
        An `Interference`: a row a layer.

    Raises:
        ValueError: a tensor of `heads` is not the head's.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> task = Examples(torch.randn(8, 3), torch.arange(8) % 2)
        >>> round(interference(model, task, task)["0"].cosine, 4)
        1.0
    """
    last = find_head(model, head)
    replaced: tuple[Weights, Weights] = heads or ({}, {})
    for weights in replaced:
        wrong = [name for name in weights if not is_inside(name, last)]
        if wrong:
            raise ValueError(f"heads= holds {wrong[0]!r}, which is not of the head {last!r}")
    gradients = [
        _gradients(model, examples, weights)
        for examples, weights in zip((first, second), replaced, strict=True)
    ]
    owner = owners(model)
    names: dict[str, list[str]] = {layer: [] for layer in layer_names(model)}
    for name in gradients[0]:
        if not (heads and is_inside(name, last)):
            names[owner[name]].append(name)
    rows = [_row(layer, members, *gradients) for layer, members in names.items() if members]
    return Interference(tuple(rows))


def _gradients(model: nn.Module, examples: Examples, weights: Weights) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy, of every parameter."""
    parameters = {
        name: weights.get(name, parameter).detach().to(parameter).requires_grad_()
        for name, parameter in model.named_parameters()
    }
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode([model]))
        stack.enter_context(torch.enable_grad())
        logits = functional_call(model, parameters, (examples.inputs,))
        loss = F.cross_entropy(logits, examples.targets)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(parameters, gradients, strict=True)
    }


def _row(layer: str, names: list[str], first: Weights, second: Weights) -> LayerInterference:
    sides = [_joined(side, names) for side in (first, second)]
    product = float(sides[0] @ sides[1])
    norms = float(sides[0].norm()), float(sides[1].norm())
    scale = norms[0] * norms[1]
    return LayerInterference(layer, product, product / scale if scale else math.nan, norms)


def _joined(gradients: Weights, names: list[str]) -> Tensor:
    """The gradients of some parameters as one vector, in float64."""
    return torch.cat([gradients[name].flatten() for name in names]).double()
