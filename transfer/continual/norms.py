"""Norms without batches, and how much of forgetting is only batch norm's running statistics."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.network.forward import map_tensors
from metalearn.network.norm import FrozenStatistics, statistics_of
from metalearn.runtime.checks import whole_number
from transfer.finetuning.data import rows_at
from transfer.finetuning.finetune import FineTuning


def group_normalised(model: nn.Module, groups: int = 8) -> nn.Module:
    """Replace every batch norm by group norm of the same channels, in place.

    Args:
        model: the network.
        groups: of channels; the greatest divisor that it shares with the channels is taken.

    Returns:
        The same network.

    Example:
        >>> group_normalised(nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12)))[1].num_groups
        4
    """
    groups = whole_number("groups", groups)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, _BatchNorm):
                channels = module.num_features
                norm = nn.GroupNorm(math.gcd(groups, channels), channels)
                setattr(parent, name, norm.to(_device(model)))
    return model


def keeps_running_statistics(model: nn.Module) -> bool:
    """Whether training writes into running statistics of the network."""
    return any(
        statistics_of(module) and not isinstance(module, FrozenStatistics)
        for module in model.modules()
    )


def reestimated(model: nn.Module, training: FineTuning, seed: int, batch: int = 128) -> nn.Module:
    """A copy of a network with its running statistics measured anew on a task's training images.

    The weights stay. What the copy scores more than the network was not forgotten: only the
    statistics had followed another task.

    Args:
        model: the network.
        training: of the task.
        seed: of the images and their order.
        batch: images a forward pass.
    """
    network = copy.deepcopy(model)
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, FrozenStatistics)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    chosen = training.chosen(seed)
    generator = torch.Generator().manual_seed(seed)
    order = chosen[torch.randperm(len(chosen), generator=generator)]
    device = torch.device(training.device)
    network.to(device)
    with torch.no_grad():
        # The last images that do not fill a batch would count as much as a whole one.
        for index in order[: max(batch, len(order) - len(order) % batch)].split(batch):
            inputs = map_tensors(Tensor.contiguous, rows_at(training.train_inputs, index, device))
            network(training._prepared(inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
