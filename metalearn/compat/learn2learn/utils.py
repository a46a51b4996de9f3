"""Operations on modules whose weights have a history: clone, detach, update."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._missing import nearest

Item = TypeVar("Item")
Module = TypeVar("Module", bound=nn.Module)


def clone_module(module: Item, memo: dict[int, Any] | None = None) -> Item:
    """Copy a module; each weight of the copy is `torch.clone` of the module's.

    Submodules and weights that the module uses twice are one in the copy too. Buffers are the same
    tensors as the module's, so running statistics stay in one place; only those that require a
    gradient are cloned as weights are.

    Args:
        module: the module; anything else is returned unchanged.
        memo: ids of modules and tensors -> their clones, for modules that share weights.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> clone_module(net)(torch.ones(1, 2)).sum().backward()
        >>> net.weight.grad
        tensor([[1., 1.]])
    """
    if not isinstance(module, nn.Module):
        return module
    if memo is None:
        memo = {}
    if id(module) in memo:
        return memo[id(module)]
    # Without __init__, which may take any arguments. The entry in `memo` comes before the children,
    # which may refer back to the module.
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
    """Detach every weight of a cloned module from its history, in place.

    Args:
        module: the module.
        keep_requires_grad: whether weights that required a gradient still do.
    """
    for tensor in _tensors(module):
        required = tensor.requires_grad  # detach_() clears it
        tensor.detach_()
        if keep_requires_grad and required:
            tensor.requires_grad_()


def update_module(
    module: Module,
    updates: Iterable[Tensor | None] | None = None,
    memo: dict[int, Any] | None = None,
) -> Module:
    """Replace every weight `p` by `p + update`, in place and differentiably.

    Args:
        module: the module.
        updates: one for each of `module.parameters()`, None for one that does not move. Without
            them each tensor's attribute `update` is used and cleared.
        memo: receives the ids of the old tensors -> the new ones.

    Returns:
        The same module.

    Raises:
        ValueError: if the numbers of weights and updates differ.

    Example:
        >>> net = clone_module(nn.Linear(2, 1, bias=False))
        >>> _ = update_module(net, [-net.weight])
        >>> net.weight.tolist()
        [[0.0, 0.0]]
    """
    if updates is not None:
        weights: list[Tensor] = [*module.parameters()]
        updates = list(updates)
        if len(weights) != len(updates):
            raise ValueError(
                f"{len(updates)} updates for {len(weights)} parameters; give one a parameter, None"
                " for one that does not move"
            )
    else:
        weights = _tensors(module)
        updates = [_take_update(weight) for weight in weights]
    pairs = [
        (weight, weight + update)
        for weight, update in zip(weights, updates, strict=True)
        if update is not None
    ]
    replace(module, pairs)
    if memo is not None:
        memo.update({id(old): new for old, new in pairs})
    return module


def replace(module: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Put the second tensor of each pair wherever the module holds the first."""
    # `pairs` keeps the old tensors alive, so their ids stay theirs.
    new = {id(old): tensor for old, tensor in pairs}
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
    """1 with the gradient of x, `exp(x - detach(x))` (DiCE, Foerster et al. 2018).

    Anything but a tensor is returned unchanged.

    Example:
        >>> magic_box(torch.tensor(3.0))
        tensor(1.)
    """
    return torch.exp(x - x.detach()) if isinstance(x, Tensor) else x


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The share of examples whose largest entry is the target's.

    Args:
        preds: logits (examples, ways).
        targets: labels (examples,).
    """
    return (preds.argmax(dim=1) == targets).float().mean()


def descent(rate: Any, gradient: Tensor | None) -> Tensor | None:
    """The update `-rate * gradient` of a parameter; None for one that does not move."""
    return None if gradient is None else -rate * gradient


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, and buffers that move as parameters do."""
    buffers = [
        buffer
        for buffer in module.buffers()
        if buffer.requires_grad or getattr(buffer, "update", None) is not None
    ]
    return [*module.parameters(), *buffers]


def _take_update(weight: Any) -> Tensor | None:
    """The attribute `update` of a tensor, which is cleared."""
    update = getattr(weight, "update", None)
    if update is not None:
        weight.update = None
    return update


def _refresh(module: nn.Module) -> None:
    """Renew the second list of its weights that a recurrent module keeps."""
    if isinstance(module, nn.RNNBase):
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
