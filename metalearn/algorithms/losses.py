"""The loss of a task, checked before PyTorch broadcasts or fails on what does not fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metalearn.network.activations import is_raw
from metalearn.network.functional import Functional

Loss = Callable[[Tensor, Tensor], Tensor]

_CROSS_ENTROPIES = (F.cross_entropy, nn.CrossEntropyLoss)
# Losses that compare value by value, and would repeat values of one side to fit the other.
_ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
)


def task_loss(loss: Loss, network: Functional, logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a task, or of every task of a stack.

    Args:
        loss: from logits and targets of one task to the mean over examples.
        network: what gave the logits; it knows whether tasks are stacked.
        logits: (examples, outputs), or (tasks, examples, outputs).
        targets: (examples,) labels or (examples, outputs) values, or a stack of them.

    Returns:
        A scalar, or (tasks,).

    Raises:
        ValueError: the loss cannot take these logits and targets, or gives more than one value.
    """
    if not targets.is_floating_point() and not targets.is_complex():
        targets = targets.long()  # as PyTorch's losses require
    if _is_one_of(loss, _CROSS_ENTROPIES):
        _check_cross_entropy(network, logits, targets)
    elif _is_one_of(loss, _ELEMENTWISE):
        _check_elementwise(network, logits, targets)
    try:
        per_task = loss if network.tasks is None else vmap(loss)
        result = per_task(logits, targets)  # () or (tasks,)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        _explain(error, loss, network, logits, targets)
        raise
    if result.ndim != network.task_dims:
        raise ValueError(
            f"the loss gives {tuple(result.shape)} values for one task; give one that returns the"
            " mean (reduction='mean')"
        )
    return result


def _check_cross_entropy(network: Functional, logits: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point():
        raise ValueError(
            f"under cross-entropy class labels must be integers, not {targets.dtype}; pass"
            " loss=F.mse_loss (or another loss) for regression, or targets.long() for labels"
        )
    shape = tuple(logits.shape[network.task_dims :])
    if len(shape) < 2:
        raise ValueError(
            f"cross-entropy needs logits (examples, classes), but the model's output is {shape};"
            " pass another loss="
        )
    if shape[1] == 1:
        raise ValueError(
            "the cross-entropy of a single output is 0 for any weights, so nothing would be"
            " learned; pass loss=F.mse_loss (or another loss) for regression, or build the model"
            " with an output for each class"
        )


def _check_elementwise(network: Functional, logits: Tensor, targets: Tensor) -> None:
    if logits.shape == targets.shape:
        return
    outputs = tuple(logits.shape[network.task_dims :])
    values = tuple(targets.shape[network.task_dims :])
    raise ValueError(
        f"the loss cannot take outputs of {outputs} and targets of {values}: one would be repeated"
        " to fit the other; give targets of the shape of the outputs, or pass another loss="
    )


def _explain(
    error: Exception, loss: Loss, network: Functional, logits: Tensor, targets: Tensor
) -> None:
    """Raise ValueError in words if PyTorch's loss fails on one task, too."""
    if network.tasks is not None:
        task_loss(loss, network.single(), logits[0], targets[0])
    elif is_raw(error):  # not a message of the loss's author
        outputs = f"{logits.dtype} of {tuple(logits.shape)}"
        labels = f"{targets.dtype} of {tuple(targets.shape)}"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the loss cannot take outputs {outputs} and targets {labels} ({reason}); pass another"
            " loss=, or targets that fit it"
        ) from error


def _is_one_of(loss: Loss, kinds: tuple[Any, ...]) -> bool:
    """Whether a loss is one of these functions, or of these classes, with options or without."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    classes = tuple(kind for kind in kinds if isinstance(kind, type))
    return any(function is kind for kind in kinds) or isinstance(function, classes)
