"""Padding: what makes tasks of unequal size fit in one stack, and the mask that tells it apart.

A padded example repeats the first one of its task and has the label `PADDING`, which PyTorch's
cross-entropy ignores. So the labels are the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.network.forward import map_tensors

PADDING = -100
"""The label of padded examples, the default `ignore_index` of `F.cross_entropy`."""


def is_padding(targets: Tensor) -> Tensor:
    """Which examples are padding, by their labels; none for targets that are no labels.

    Args:
        targets: labels (examples,) or (tasks, examples).

    Returns:
        A mask of the shape of `targets`.

    Example:
        >>> is_padding(torch.tensor([[0, 1], [0, PADDING]]))
        tensor([[False, False],
                [False,  True]])
    """
    if targets.is_floating_point() or targets.is_complex():
        return torch.zeros_like(targets, dtype=torch.bool)
    # Compared in int64: unsigned and short labels cannot hold the value.
    return targets.long() == PADDING


def has_padding(targets: Tensor) -> bool:
    """Whether labels of a stack (tasks, examples) hold padding; False for other targets."""
    return targets.ndim == 2 and bool(is_padding(targets).any())


def padded(inputs: Any, targets: Tensor, size: int) -> tuple[Any, Tensor]:
    """The examples of one task, padded to a number of them.

    Args:
        inputs: a tensor (examples, ...), or several.
        targets: integer labels (examples,), at least one.
        size: the number of examples after it.
    """
    missing = size - len(targets)
    labels = targets.long()  # unsigned and short labels cannot hold the label of padding
    if not missing:
        return inputs, labels
    # A real example can be taken by any network, and gives no NaN.
    filled = map_tensors(
        lambda tensor: torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]), inputs
    )
    return filled, torch.cat([labels, labels.new_full((missing,), PADDING)])


def without_padding(inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
    """The examples of one task that are not padding."""
    real = ~is_padding(targets)
    if targets.ndim != 1 or bool(real.all()):
        return inputs, targets
    return map_tensors(lambda tensor: tensor[real], inputs), targets[real]
