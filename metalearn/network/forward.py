"""Calling any network: one tensor, several, or a dictionary in; one tensor out, chosen by name
where there are more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

# What a network is called with. Every tensor in it has the examples as its first dimension.
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def forward(model: nn.Module, inputs: Inputs, output: str | None = None) -> Tensor:
    """The output of a network as one tensor.

    Args:
        model: any module.
        inputs: a tensor for `model(inputs)`, a tuple or list for `model(*inputs)`, a mapping for
            `model(**inputs)`.
        output: which entry of a tuple, a dictionary or a `ModelOutput` to take: its key, its field,
            or its index as text. In evaluation mode a tensor is taken as it is: GoogLeNet and
            others have several outputs in training mode alone.

    Raises:
        ValueError: the output is not a tensor and `output` is missing or is not one of its entries,
            which are listed.

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
    if isinstance(result, Tensor) and not model.training:
        return result
    return select(
        result, output, f"the model {type(model).__name__}", lambda entry: f"output={entry!r}"
    )


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments of a network."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {}


def map_tensors(function: Callable[[Tensor], Any], inputs: Inputs) -> Any:
    """The same structure with `function` of every tensor in it; what is not a tensor stays as it
    is.

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
    listed: list[Tensor] = []
    map_tensors(listed.append, inputs)
    return listed


def select(result: Any, entry: str | None, source: str, name: Callable[[str], str]) -> Tensor:
    """One tensor of what a module returned.

    Args:
        result: a tensor, or a tuple, list or mapping that holds tensors.
        entry: which entry of it; None where it is a tensor.
        source: what returned it, for the message.
        name: from an entry to what the user writes to choose it, for the message.

    Raises:
        ValueError: there is no such tensor; the entries that there are are listed.
    """
    entries = _entries(result)
    chosen = result if entry is None else entries.get(str(entry))
    if isinstance(chosen, Tensor):
        return chosen
    returned = f"{source} puts out a {type(result).__name__}"
    if not entries and entry is None:
        raise ValueError(f"{returned}, not a tensor; name a layer inside or after it")
    if not entries:
        raise ValueError(f"{returned}, which has no entry {entry!r}; name it without")
    listed = ", ".join(f"{key} ({_describe(value)})" for key, value in entries.items())
    wrong = "not a tensor" if entry is None else f"of which {entry!r} is no tensor"
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    cure = f"name one as {name(tensors[0])}" if tensors else "name a layer inside or after it"
    raise ValueError(f"{returned}, {wrong}; its entries are {listed}; {cure}")


def _entries(result: Any) -> dict[str, Any]:
    """What a tuple, list or mapping holds, by index or key; named tuples by field."""
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", map(str, range(len(result))))
        return dict(zip(names, result, strict=True))
    return {}


def _describe(value: Any) -> str:
    return " x ".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
