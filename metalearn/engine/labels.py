"""Checks of class labels."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.padding import has_padding, is_padding

RELABEL = "labels.unique(return_inverse=True)[1] numbers them so"


def check_labels(targets: Tensor, ways: int) -> None:
    """Check that labels are integers from 0 to ways - 1; in a stack some may be padding.

    Raises:
        ValueError: they are not, or there are none.
    """
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"class labels must be integers, not {targets.dtype}; use targets.long()")
    if not targets.numel():
        raise ValueError("there are no labels: the set of examples is empty")
    beyond = (targets < 0) | (targets >= ways)
    if bool(beyond.any()) and targets.ndim == 2:
        beyond &= ~is_padding(targets)
    if bool(beyond.any()):
        raise ValueError(
            f"the labels run from {targets.min()} to {targets.max()}, but there are {ways} ways:"
            f" labels must be 0 to {ways - 1}; {RELABEL}"
        )


def check_classes(targets: Tensor, ways: int, first: int = 0) -> None:
    """Check that labels are 0 to ways - 1, and that every support set has an example of each class.

    In a padded stack the tasks may differ in their classes, and each has those up to its largest
    label.

    Args:
        targets: the labels of a support set (examples,), or of a stack of them (tasks, examples).
        ways: the number of classes.
        first: the number of the first task, for the message.

    Raises:
        ValueError: a label is another number, or a class has no example.

    Example:
        >>> check_classes(torch.tensor([[0, 1], [1, 1]]), ways=2)
        Traceback (most recent call last):
        ValueError: the support set of task 1 has no example of class 0; give every class one, or
        label the classes that have ...
    """
    check_labels(targets, ways)
    absent = absent_class(targets, ways)
    if absent is None:
        return
    task, label = absent
    name = "the support set"
    if targets.ndim > 1:
        name = f"the support set of task {first + task}"
    raise ValueError(
        f"{name} has no example of class {label}; give every class one, or label the classes that"
        f" have some 0, 1, 2, ...; {RELABEL}"
    )


def absent_class(targets: Tensor, ways: int) -> tuple[int, int] | None:
    """The first task and class without an example.

    Args:
        targets: labels (examples,) or (tasks, examples).
        ways: the number of classes.

    Returns:
        The numbers of the task and of the class; None if every class has an example. A task of a
        padded stack has the classes up to its largest label.

    Example:
        >>> absent_class(torch.tensor([[0, 1, 2], [0, 2, 2]]), ways=3)
        (1, 1)
    """
    # With more classes than examples, one of the first `examples + 1` is absent. A table of all of
    # them could be too large for memory if a single label is large.
    classes = min(ways, targets.shape[-1] + 1)
    numbers = torch.arange(classes, device=targets.device)
    present = (targets.unsqueeze(-1) == numbers).any(-2)  # (..., classes)
    if has_padding(targets):
        present |= numbers > targets.amax(-1, keepdim=True)
    absent = (~present).flatten().nonzero()  # places among (tasks * classes,)
    if not len(absent):
        return None
    return divmod(int(absent[0]), classes)


def class_count(targets: Tensor) -> int:
    """The number of classes of a stack of support sets, the largest label + 1.

    Args:
        targets: labels (tasks, examples). It is 0 for any other targets.
    """
    is_real = targets.is_floating_point() or targets.is_complex()
    if is_real or targets.ndim != 2 or not targets.numel():
        return 0
    return int(targets.max()) + 1


def labels_on_cpu(targets: Tensor) -> Tensor:
    """Integer targets on the CPU, where a check waits for no other device; others as they are."""
    if targets.is_floating_point() or targets.is_complex():
        return targets
    return targets.cpu()
