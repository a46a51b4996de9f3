"""Modules whose weights are tensors with a history: cloned, detached, updated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._missing import nearest

Item = TypeVar("Item")
Module = TypeVar("Module", bound=nn.Module)


def clone_module(module: Item, memo: dict[int, Any] | None = None) -> Item:
    """A copy whose weights are differentiable functions of the module's, `torch.clone` of each.

    Submodules and weights that the module uses twice are one in the copy too. Buffers are the
    module's own tensors, so that running statistics are updated in the one place, but for those
    that require a gradient, which are cloned as weights are. What is not a module comes back as it
    is. `memo` maps ids of what has been cloned to its clone, for modules that share weights.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> clone_module(net)(torch.ones(1, 2)).sum().backward()
        >>> net.weight.grad
        tensor([[1., 1.]])
    """
    if not isinstance(module, nn.Module):
        return module
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    copy = memo[id(module)] = module.__new__(type(module))
    copy.__dict__ = module.__dict__.copy()
    for kind in ("_parameters", "_buffers"):
        tensors = copy.__dict__[kind] = dict(getattr(module, kind))
        for name, tensor in tensors.items():
            if tensor is not None and (kind == "_parameters" or tensor.requires_grad):
                if id(tensor) not in memo:
                    memo[id(tensor)] = tensor.clone()
                tensors[name] = memo[id(tensor)]
    copy.__dict__["_modules"] = {
        name: clone_module(child, memo) for name, child in module._modules.items()
    }
    _refresh(copy)
    return copy


def detach_module(module: nn.Module, keep_requires_grad: bool = False) -> None:
    """Cut every weight of a cloned module off from its history, in place; they require no gradient
    unless `keep_requires_grad`.
    """
    for tensor in _tensors(module):
        required = tensor.requires_grad
        tensor.detach_()
        if keep_requires_grad and required:
            tensor.requires_grad_()


def update_module(
    module: Module,
    updates: Iterable[Tensor | None] | None = None,
    memo: dict[int, Any] | None = None,
) -> Module:
    """Replace every weight `p` by `p + update`, in place and differentiably, and return the module.

    `updates` has one entry for each of `module.parameters()`, None for one that stays; without it
    the tensors' own `update` attributes are taken, and cleared. Raises ValueError where the numbers
    of weights and updates differ.

    Example:
        >>> net = clone_module(nn.Linear(2, 1, bias=False))
        >>> _ = update_module(net, [-net.weight])
        >>> net.weight.tolist()
        [[0.0, 0.0]]
    """
    if updates is not None:
        weights: list[Tensor] = [*module.parameters()]
        given = list(updates)
        if len(weights) != len(given):
            raise ValueError(
                f"{len(given)} updates for {len(weights)} parameters; give one a parameter, None"
                " for one that stays"
            )
    else:
        weights = _tensors(module)
        given = [getattr(weight, "update", None) for weight in weights]
        for weight, update in zip(weights, given, strict=True):
            if update is not None:
                weight.update = None  # type: ignore[attr-defined]
    pairs = [
        (weight, weight + update)
        for weight, update in zip(weights, given, strict=True)
        if update is not None
    ]
    replace(module, pairs)
    if memo is not None:
        memo.update({id(old): new for old, new in pairs})
    return module


def replace(module: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put the second of each pair wherever the module holds the first."""
    new = {
        id(old): tensor for old, tensor in pairs
    }  # `pairs` keeps the old ones alive, so that no id is taken twice
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, tensor in tensors.items():
                if id(tensor) in new:
                    tensors[name] = new[id(tensor)]  # type: ignore[assignment]
        _refresh(child)


def clone_parameters(param_list: Iterable[Tensor]) -> list[Tensor]:
    """`torch.clone` of each."""
    return [tensor.clone() for tensor in param_list]


def clone_named_parameters(param_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`torch.clone` of each."""
    return {name: tensor.clone() for name, tensor in param_dict.items()}


def magic_box(x: Any) -> Any:
    """1 with the gradient of x, `exp(x - detach(x))` (DiCE, Foerster et al. 2018); what is not a
    tensor comes back as it is.

    Example:
        >>> magic_box(torch.tensor(3.0))
        tensor(1.)
    """
    return torch.exp(x - x.detach()) if isinstance(x, Tensor) else x


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The share of rows of `preds` (examples, ways) whose largest entry is the target's
    (examples,).
    """
    return (preds.argmax(dim=1) == targets).float().mean()


def _tensors(module: nn.Module) -> list[Tensor]:
    buffers = [
        buffer
        for buffer in module.buffers()
        if buffer.requires_grad or getattr(buffer, "update", None) is not None
    ]
    return [*module.parameters(), *buffers]


def _refresh(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):  # it keeps its weights in a second list
        module.__dict__["_flat_weights"] = [
            module._parameters.get(name) for name in module._flat_weights_names
        ]


_DISTRIBUTION = (
    "reinforcement learning is not covered; build the distribution anew from the outputs of a"
    " cloned module"
)
INSTEAD = {
    "clone_distribution": _DISTRIBUTION,
    "detach_distribution": _DISTRIBUTION,
    "flatten_config": (
        "vars(args) gives the settings of an argparse.Namespace, dataclasses.asdict(config) those"
        " of a dataclass"
    ),
}

__getattr__ = nearest(
    __name__,
    [
        "accuracy",
        "clone_module",
        "clone_named_parameters",
        "clone_parameters",
        "detach_module",
        "magic_box",
        "update_module",
    ],
    instead=INSTEAD,
)
