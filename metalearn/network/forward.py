"""Calling any network: with one tensor, several, or a dictionary, for one output tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

# The inputs of a network. The first dimension of every tensor is the examples.
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def forward(model: nn.Module, inputs: Inputs, output: str | None = None) -> Tensor:
    """The output of a network as one tensor.

    Args:
        model: any module.
        inputs: a tensor for `model(inputs)`, a tuple or list for `model(*inputs)`, a mapping for
            `model(**inputs)`.
        output: which entry of a tuple, a dictionary or a `ModelOutput` to take: its key, its field,
            or its index as text. In evaluation mode it is ignored for a tensor: GoogLeNet and
            others have several outputs only in training mode.

    Returns:
        The output, (examples, ...).

    Raises:
        ValueError: the output is not a tensor, and `output` is missing or is not one of its
            entries. The message lists them.

    Example:
        >>> import torch
        >>> class Two(nn.Linear):
        ...     def forward(self, x):
        ...         return {"logits": super().forward(x), "features": x}
        >>> forward(Two(4, 2), torch.ones(3, 4), output="logits").shape
        torch.Size([3, 2])
    """
    args, kwargs = arguments(inputs)
    result = model(*args, **kwargs)
    # A name that belongs to training mode must not fail in evaluation mode.
    if isinstance(result, Tensor) and not model.training:
        return result
    return select(
        result, output, f"the model {type(model).__name__}", lambda entry: f"output={entry!r}"
    )


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments of a network."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return tuple(inputs), {}


def map_tensors(function: Callable[[Tensor], Any], inputs: Inputs) -> Any:
    """The same structure with `function` applied to every tensor in it.

    Values that are not tensors stay unchanged.

    Example:
        >>> import torch
        >>> map_tensors(lambda tensor: tensor[:1], {"ids": torch.tensor([3, 4]), "full": True})
        {'ids': tensor([3]), 'full': True}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(function, value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return tuple(map_tensors(function, value) for value in inputs)
    return inputs


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors of a network's inputs, in order.

    Example:
        >>> import torch
        >>> len(tensors_of((torch.ones(2), {"mask": torch.ones(2)})))
        2
    """
    tensors: list[Tensor] = []
    map_tensors(tensors.append, inputs)
    return tensors


def select(result: Any, entry: str | None, source: str, name: Callable[[str], str]) -> Tensor:
    """One tensor of a module's output.

    Args:
        result: a tensor, or a tuple, list or mapping that holds tensors.
        entry: which entry of it; None for a tensor.
        source: the module, for the message.
        name: from an entry to what the user writes to select it, for the message.

    Raises:
        ValueError: there is no such tensor. The message lists the entries.
    """
    entries = _entries(result)  # none for a tensor
    selected = result if entry is None else entries.get(str(entry))
    if isinstance(selected, Tensor):
        return selected
    returned = f"{source} returned a {type(result).__name__}"
    other_layer = "name a layer inside or after it"
    if not entries:
        if entry is None:
            raise ValueError(f"{returned}, not a tensor; {other_layer}")
        raise ValueError(f"{returned}, which has no entry {entry!r}; leave the entry out")
    fault = "not a tensor" if entry is None else f"and its entry {entry!r} is not a tensor"
    listed = ", ".join(f"{key} ({_describe(value)})" for key, value in entries.items())
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    cure = f"name one as {name(tensors[0])}" if tensors else other_layer
    raise ValueError(f"{returned}, {fault}; its entries are {listed}; {cure}")


def _entries(result: Any) -> dict[str, Any]:
    """The entries of a mapping by key, of a named tuple by field, of a tuple or list by index."""
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", map(str, range(len(result))))
        return dict(zip(names, result, strict=True))
    return {}


def _describe(value: Any) -> str:
    """The shape of a tensor; the type of anything else."""
    if isinstance(value, Tensor):
        return " x ".join(map(str, value.shape))
    return type(value).__name__
