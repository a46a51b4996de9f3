"""Loss, gradients and dead units of a start, before the first update."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metalearn.network.layers import owners
from transfer.comparison.results import FirstStep
from transfer.finetuning.finetune import FineTuning


def first_step(network: nn.Module, train: FineTuning, seed: int) -> FirstStep:
    """Measure a network on the first batch of its training.

    The gradient norm of a layer is `sqrt(sum g^2)` over its parameters. A unit is an output of a
    linear or convolutional layer: a row of its weight. It is dead if the gradient of its row is
    exactly zero, as it is behind a ReLU that no image of the batch opens.

    Args:
        network: at its start; its layers are frozen as in the training, and its running statistics
            change.
        train: its training.
        seed: of the batch.

    Returns:
        The measurements; layers that do not train have no gradient, and their units do not count.
    """
    loss = train.first_loss(network, seed)
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    gradients: dict[str, Tensor] = {}
    if trained:
        values = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for (name, parameter), value in zip(trained.items(), values, strict=True):
            gradients[name] = torch.zeros_like(parameter) if value is None else value
    layer_of = owners(network)
    squares: dict[str, float] = {}
    for name, gradient in gradients.items():
        layer = layer_of[name]
        squares[layer] = squares.get(layer, 0.0) + gradient.double().square().sum().item()
    norms = {layer: square**0.5 for layer, square in squares.items()}
    dead = 0
    units = 0
    for name in _unit_weights(network):
        if name in gradients:
            rows = gradients[name].flatten(1)  # (units, weights of a unit)
            dead += int((rows == 0).all(dim=1).sum())
            units += len(rows)
    return FirstStep(loss.item(), norms, dead, units)


def _unit_weights(network: nn.Module) -> Iterator[str]:
    """The names of the weights whose first dimension are the units of a layer."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            yield f"{name}.weight".removeprefix(".")
