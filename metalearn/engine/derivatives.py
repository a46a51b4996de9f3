"""Operations that PyTorch cannot differentiate twice, found in the graph and named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node


def nodes(tensor: Tensor) -> Iterator[Node]:
    """The nodes of the graph that autograd recorded for a tensor; none for a leaf.

    Args:
        tensor: of any shape.

    Returns:
        Each node once, from the tensor back to the leaves.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> [node.name() for node in nodes((2 * w).sum())]
        ['SumBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    waiting = [tensor.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def has_reentrant_checkpoint(loss: Tensor) -> bool:
    """Whether the graph has a checkpoint whose parameters `torch.autograd.grad` cannot see."""
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes(loss))


def missing_derivative(error: RuntimeError) -> str:
    """What to do about an operation without a second derivative; "" for any other error."""
    # As in "derivative for aten::hardsigmoid_backward is not implemented".
    missing = re.search(
        r"derivative for (?:aten::)?(\w+?)(?:_backward)? is not implemented", str(error)
    )
    if missing is None:
        return ""
    return (
        f"PyTorch has no second derivative of {missing[1]}, which the model uses ({error}); use"
        " first_order=True"
    )


def explain_missing_derivatives(logits: Tensor) -> bool:
    """Make a backward pass from these logits raise `missing_derivative` where it would fail.

    Returns:
        Whether an operation lacks its second derivative.
    """
    message = ""

    def refuse(_: Any) -> None:
        raise RuntimeError(message)

    for node in nodes(logits):
        if node.name() == "torch::autograd::NotImplemented":
            try:
                node(logits)  # type: ignore[operator]  # such a node does nothing but raise
            except RuntimeError as error:
                message = missing_derivative(error)
            node.register_prehook(refuse)
    return bool(message)
