"""Checks of class labels."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.engine.recording import value

RELABEL = "labels.unique(return_inverse=True)[1] numbers them so"


def check_labels(targets: Tensor, ways: int) -> None:
    """Raise ValueError where labels are not the integers 0 to ways - 1."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"class labels must be integers, not {targets.dtype}; use targets.long()")
    if not targets.numel():
        raise ValueError("there are no labels: the set of examples is empty")
    if value(((targets < 0) | (targets >= ways)).any()):
        low, high = value(targets.min()), value(targets.max())
        raise ValueError(
            f"the labels run from {low} to {high}, but there are {ways} ways: labels must be 0 to"
            f" {ways - 1}; {RELABEL}"
        )


def check_classes(targets: Tensor, ways: int, first: int = 0) -> None:
    """Raise ValueError where labels are not 0 to ways - 1, or a class has no example in the support
    set.

    Args:
        targets: the labels of a support set (examples,), or of a stack of them (tasks, examples).
        ways: the number of classes.
        first: the number of the first task, for the message.

    Example:
        >>> check_classes(torch.tensor([[0, 1], [1, 1]]), ways=2)
        Traceback (most recent call last):
        ValueError: the support set of task 1 has no example of class 0; give every class one, or
        label the classes that have ...
    """
    check_labels(targets, ways)
    absent = absent_class(targets, ways)
    if absent is not None:
        task, label = absent
        of = f" of task {first + task}" if targets.ndim > 1 else ""
        raise ValueError(
            f"the support set{of} has no example of class {label}; give every class one, or label"
            f" the classes that have some 0, 1, 2, ...; {RELABEL}"
        )


def absent_class(targets: Tensor, ways: int) -> tuple[int, int] | None:
    """The first task and class without an example among labels (examples,) or (tasks, examples);
    None if there are examples of all.

    Example:
        >>> absent_class(torch.tensor([[0, 1, 2], [0, 2, 2]]), ways=3)
        (1, 1)
    """
    # More classes than examples need no table of them, which a single large label could make too
    # large for memory.
    classes = min(ways, targets.shape[-1] + 1)
    numbers = torch.arange(classes, device=targets.device)
    missing = (targets.unsqueeze(-1) != numbers).all(-2).flatten().int()  # (tasks * classes,)
    place = value(torch.where(missing.any(), missing.argmax(), -1))
    return None if place < 0 else (int(place) // classes, int(place) % classes)
