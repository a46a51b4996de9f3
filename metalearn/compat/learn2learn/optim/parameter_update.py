"""Gradients changed by trained transforms."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


class ParameterUpdate(nn.Module):
    """`torch.autograd.grad` with a module for each parameter that transforms its gradient.

    Args:
        parameters: the parameters to update, in the order in which `forward` receives them.
        transform: called with each parameter; returns a module, or None to keep the gradient.

    Raises:
        ValueError: if the transform of a parameter is no module.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> net = nn.Linear(2, 1)
        >>> update = ParameterUpdate(net.parameters(), lambda p: l2l.nn.Scale(p.shape, alpha=0.5))
        >>> [step.tolist() for step in update(net(torch.ones(1, 2)).sum(), net.parameters())]
        [[[0.5, 0.5]], [0.5]]
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        transform: Callable[[Any], nn.Module | None],
    ) -> None:
        super().__init__()
        self.transforms_modules = nn.ModuleList()
        # The position of each parameter's transform in `transforms_modules`, or None.
        self.transforms_indices: list[int | None] = []
        for parameter in parameters:
            module = transform(parameter)
            if module is None:
                self.transforms_indices.append(None)
            elif isinstance(module, nn.Module):
                self.transforms_indices.append(len(self.transforms_modules))
                self.transforms_modules.append(module)
            else:
                raise ValueError(
                    "a transform of a parameter must be an nn.Module or None, but `transform`"
                    f" returned a {type(module).__name__}"
                )

    def forward(
        self,
        loss: Tensor,
        parameters: Iterable[Tensor],
        create_graph: bool = False,
        retain_graph: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> list[Tensor | None]:
        """The update of each parameter, None for one without a gradient.

        Args:
            loss: the loss to differentiate.
            parameters: as many as at construction, in the same order.
            create_graph: as in `torch.autograd.grad`.
            retain_graph: as in `torch.autograd.grad`.
            allow_unused: as in `torch.autograd.grad`.
            allow_nograd: return None for parameters that require no gradient, instead of an error.

        Raises:
            RuntimeError: if a parameter requires no gradient, or the loss does not depend on it.
            ValueError: if there are more or fewer parameters than transforms.
        """
        parameters = list(parameters)
        if len(parameters) != len(self.transforms_indices):
            raise ValueError(
                f"{len(parameters)} parameters, but this ParameterUpdate was made for "
                f"{len(self.transforms_indices)}; pass those of the same module"
            )
        moves = [parameter.requires_grad or not allow_nograd for parameter in parameters]
        moving = list(compress(parameters, moves))
        try:
            computed = torch.autograd.grad(
                loss,
                moving,
                retain_graph=retain_graph or create_graph,
                create_graph=create_graph,
                allow_unused=allow_unused,
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}\n(allow_nograd=True leaves out parameters that require no gradient, "
                "allow_unused=True those that the loss does not depend on)"
            ) from error
        updates: list[Tensor | None] = [None] * len(parameters)
        positions = compress(range(len(parameters)), moves)
        for position, gradient in zip(positions, computed, strict=True):
            index = self.transforms_indices[position]
            if gradient is not None and index is not None:
                gradient = self.transforms_modules[index](gradient)
            updates[position] = gradient
        return updates


__getattr__ = nearest(__name__, ["ParameterUpdate"])
