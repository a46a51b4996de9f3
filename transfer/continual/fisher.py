"""The diagonal of the Fisher information, from the gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from metalearn.network.modes import evaluation_mode
from metalearn.network.norm import FrozenStatistics, keeps_statistics, statistics_of
from metalearn.runtime.checks import whole_number

LABELS = ("model", "data")


def fisher(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    labels: str = "model",
    chunk: int = 32,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of a classifier.

    `F_i = mean_x E_y (d log p(y | x) / d w_i)^2`, with y from the network's own predictions
    (`labels="model"`, the expectation over all classes, which needs no draw) or the true label
    (`labels="data"`, the empirical Fisher); Kirkpatrick et al. 2017 (arXiv:1612.00796). The square
    is of the gradient of each example. The square of a batch's mean gradient is another quantity,
    smaller by about the size of the batch.

    Args:
        model: a network that scores each class, in evaluation mode while this runs.
        inputs: (examples, ...), as the network takes them.
        targets: (examples,) true labels, for `labels="data"`.
        labels: "model" or "data".
        chunk: examples whose gradients are in memory together; 1 uses plain autograd, for networks
            that `torch.func.vmap` does not run.

    Returns:
        {parameter: its Fisher information, of its shape}, of the parameters that require gradients.

    Raises:
        ValueError: a layer normalises by the batch or by running statistics, dropout is active, or
            labels are missing.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        >>> fisher(model, torch.ones(4, 2))["weight"]  # p (1 - p) x^2 with p = 1/2
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
    """
    if labels not in LABELS:
        raise ValueError(f"labels={labels!r}; choose {' or '.join(LABELS)}")
    if labels == "data" and targets is None:
        raise ValueError("labels='data' needs targets=: the true label of every example")
    chunk = whole_number("chunk", chunk)
    check_single_examples(model)
    check_no_dropout(model, inputs[:2])
    weights = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if not weights:
        raise ValueError("no parameter of the network requires a gradient; freeze fewer layers")
    if targets is None:
        targets = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    squares = _by_autograd if chunk == 1 else _by_vmap
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with evaluation_mode([model]):
        for part, answers in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            for name, value in squares(model, weights, part, answers, labels).items():
                total[name] += value
    return {name: value / len(inputs) for name, value in total.items()}


def _log_probabilities(model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The log-probabilities of one example, (1, ...) -> (classes,)."""
    return functional_call(model, dict(weights), (inputs,))[0].log_softmax(0)


def _by_vmap(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor, labels: str
) -> dict[str, Tensor]:
    """The sum over examples of squared gradients, all examples at once."""

    def log_p(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return _log_probabilities(model, weights, example[None])

    def of_data(example: Tensor, target: Tensor) -> dict[str, Tensor]:
        def chosen(weights: dict[str, Tensor]) -> Tensor:
            return log_p(weights, example).gather(0, target[None])[0]

        return {name: value.square() for name, value in grad(chosen)(weights).items()}

    def of_model(example: Tensor, target: Tensor) -> dict[str, Tensor]:
        gradients = jacrev(log_p)(weights, example)  # {name: (classes, *shape)}
        p = log_p(weights, example).exp()
        # sum_c p_c g_c^2, (classes,) and (classes, *shape) -> shape
        return {
            name: torch.einsum("c,c...->...", p, value.square())
            for name, value in gradients.items()
        }

    function: Callable[..., Any] = of_model if labels == "model" else of_data
    # (examples, *shape) for each parameter
    return {name: value.sum(0) for name, value in vmap(function)(inputs, targets).items()}


def _by_autograd(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor, labels: str
) -> dict[str, Tensor]:
    """The squared gradient of one example."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    values = _log_probabilities(model, leaves, inputs)
    shares = values.detach().exp()
    if labels == "data":
        shares = F.one_hot(targets[0], len(values)).to(values)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for value, share in zip(values, shares, strict=True):
        if not share:
            continue
        gradients = torch.autograd.grad(
            value, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                total[name] += share * gradient.square()
    return total


def check_single_examples(model: nn.Module) -> None:
    """Raise ValueError if a layer ties examples together, or follows their statistics."""
    for name, module in model.named_modules():
        layer = f"{name or 'the network'} ({type(module).__name__})"
        cure = (
            "use a norm of single examples, such as nn.GroupNorm (group_normalised(model) replaces"
            " every batch norm), or train with metalearn.frozen_statistics(model); replay needs"
            " neither"
        )
        if isinstance(module, FrozenStatistics):
            continue
        if statistics_of(module) and keeps_statistics(module):
            raise ValueError(
                f"{layer} keeps running statistics: they follow the next task, so the Fisher"
                f" information would be of another network than the one that trains; {cure}"
            )
        is_batch_norm = isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)
        if is_batch_norm and not statistics_of(module):
            raise ValueError(
                f"{layer} normalises by the batch, so single examples have no gradient of their"
                f" own; {cure}"
            )


def check_no_dropout(model: nn.Module, inputs: Tensor) -> None:
    """Raise ValueError if two passes in training mode differ: dropout, or other noise, is active.

    Args:
        model: the network.
        inputs: a few examples.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        try:
            for module in model.modules():
                if not isinstance(module, FrozenStatistics):
                    module.training = True
            differ = not torch.equal(model(inputs), model(inputs))
        finally:
            for module, mode in modes:
                module.training = mode
    if not differ:
        return
    active = [
        f"{name} ({module})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    layer = active[0] if active else type(model).__name__
    raise ValueError(
        f"{layer} drops units at random in training, and the Fisher information is of the network"
        " without dropout; set its p to 0, or use replay"
    )
