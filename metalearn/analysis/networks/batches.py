"""From a batch to the inputs of a network, on its device and in its precision."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.measures.inputs import real_tensor
from metalearn.network.forward import Inputs, arguments

ToInputs: TypeAlias = Callable[[Any], Inputs]

# Entries of a dictionary that are not inputs.
LABELS = ("labels", "label", "targets", "target")

CURE = "pass to_inputs=, a function from a batch to what the network is called with"


def is_one_batch(inputs: Any) -> bool:
    """Whether these are the inputs themselves, not a loader of batches."""
    return isinstance(inputs, Tensor | np.ndarray | Mapping)


def loader_of(inputs: Any) -> Iterable[Any]:
    """An iterable of batches; a tensor, an array or a dictionary is one batch."""
    if is_one_batch(inputs):
        return [inputs]
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes):
        raise TypeError(
            f"the inputs are {_described(inputs)}; give a tensor (examples, ...), a dictionary of"
            " them, or a loader of batches"
        )
    return inputs


def inputs_of(batch: Any, source: str, to_inputs: ToInputs | None = None) -> Inputs:
    """The inputs in a batch.

    Args:
        batch: a tensor; a dictionary, whose entries are inputs by keyword except those in `LABELS`;
            or a tuple or list that starts with the inputs: a tensor, a dictionary, or a tuple of
            several inputs by position.
        source: what the batch is called in errors.
        to_inputs: used instead of this rule.

    Raises:
        ValueError: there is no tensor with examples among the inputs.

    Example:
        >>> batch = {"ids": torch.ones(2, 3), "mask": torch.ones(2, 3), "labels": torch.ones(2)}
        >>> sorted(inputs_of(batch, "the batch"))
        ['ids', 'mask']
        >>> len(inputs_of(((torch.ones(2, 3), torch.ones(2, 5)), torch.ones(2)), "the batch"))
        2
    """
    if to_inputs is not None:
        inputs: Any = to_inputs(batch)
    elif isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABELS}
    elif isinstance(batch, tuple | list) and len(batch):
        inputs = batch[0]
    else:
        inputs = batch
    if isinstance(inputs, np.ndarray):
        inputs = real_tensor(inputs, source)
    if not _sizes(inputs):
        held = _described(batch if to_inputs is None else inputs)
        raise ValueError(
            f"{source} holds {held}; it must give a tensor of examples, a dictionary of inputs, or"
            f" a tuple whose first entry is one; or {CURE}"
        )
    return inputs


def count(inputs: Inputs) -> int:
    """How many examples there are: the first dimension of the first tensor."""
    return _sizes(inputs)[0]


def shown_batches(number: int) -> str:
    """A number of batches in words.

    Example:
        >>> shown_batches(1), shown_batches(3)
        ('1 batch', '3 batches')
    """
    return "1 batch" if number == 1 else f"{number} batches"


def tensor_of(network: nn.Module) -> Tensor | None:
    """A tensor on the network's device and in its dtype; None if it holds none."""
    return next((tensor for tensor in (*network.parameters(), *network.buffers())), None)


def to_device(inputs: Any, like: Tensor | None) -> Any:
    """Inputs on the device of `like`; real numbers in its dtype too, if that is real."""
    if isinstance(inputs, Mapping):
        return {name: to_device(value, like) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(to_device(value, like) for value in inputs)
    if not isinstance(inputs, Tensor) or like is None:
        return inputs
    both_real = inputs.is_floating_point() and like.is_floating_point()
    return inputs.to(like.device, like.dtype if both_real else None)


@contextmanager
def running(network: nn.Module, inputs: Inputs, side: str) -> Iterator[None]:
    """Errors of the network name it and what it was given.

    Args:
        network: the network that runs inside.
        inputs: what it is given.
        side: what it is called in errors.

    Raises:
        ValueError: its forward does not take these inputs, or computes with real numbers and was
            given integers.
    """
    args, kwargs = arguments(inputs)
    given = f"{side} ({type(network).__name__}) was given {_described(inputs)}"
    _check_signature(network, args, kwargs, given)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if _is_ours(error):
            error.add_note(given)
            raise
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        real = any(tensor.is_floating_point() for tensor in tensors)
        if real or not isinstance(error, RuntimeError):
            error.add_note(
                f"{given}; bring the inputs to the shape and dtype that it was built for"
            )
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{given}, and failed ({reason}); convert images as in training, such as images.float()"
            " / 255"
        ) from error


def _check_signature(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: str
) -> None:
    """Raise ValueError if the network's forward does not take these arguments."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # a compiled or scripted module has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{given}, but its forward takes {signature}: {error}; {CURE}") from None


def _is_ours(error: Exception) -> bool:
    """Whether this project raised the error, about a layer, and not the network."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("metalearn.")


def _sizes(inputs: Any) -> list[int]:
    """The first dimension of every tensor in the inputs that has examples, in order."""
    if isinstance(inputs, Tensor):
        entries = [inputs]
    elif isinstance(inputs, Mapping):
        entries = list(inputs.values())
    elif isinstance(inputs, tuple | list):
        entries = list(inputs)
    else:
        return []
    tensors = [entry for entry in entries if isinstance(entry, Tensor) and entry.ndim]
    return [len(tensor) for tensor in tensors if len(tensor)]


def _described(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)} and {inputs.dtype}"
    if isinstance(inputs, Mapping):
        return f"a {type(inputs).__name__} of {', '.join(map(repr, inputs)) or 'nothing'}"
    if isinstance(inputs, tuple | list):
        kinds = [type(entry).__name__ for entry in inputs]
        return f"a {type(inputs).__name__} of {', '.join(kinds) or 'nothing'}"
    return f"a {type(inputs).__name__}"
