"""What the layers of a network put out, and what enters its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import resolve


@contextmanager
def representations(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that fills with the outputs of the named layers while the model runs; the hooks are gone afterwards.

    Raises ValueError, naming the layer, where one does not exist or puts out something else than a tensor; and on leaving, where
    one did not run or ran more than once.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with representations(model, ["0", "1"]) as seen:
        ...     _ = model(torch.ones(3, 4))
        >>> {name: tuple(output.shape) for name, output in seen.items()}
        {'0': (3, 8), '1': (3, 8)}
    """
    seen: dict[str, Tensor] = {}
    runs: dict[str, int] = {resolve(model, name): 0 for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {name!r} puts out a {type(output).__name__}, not a tensor; name a layer inside or after it")
            runs[name] += 1
            seen[name] = output.clone()  # what follows may write into it: torchvision's ReLUs do

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in runs]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for name, count in runs.items():
        if count != 1:
            raise ValueError(f"layer {name!r} ran {count} times in the forward pass, so it has no one output; name a layer that runs once")


class HeadRun:
    """What was seen of the head while the model ran: what entered it and what it put out the last time, and how often it ran."""

    def __init__(self) -> None:
        self.features = self.output = self.copy = torch.empty(0)
        self.runs = 0


@contextmanager
def head_input(model: nn.Module, head: str) -> Iterator[HeadRun]:
    """A `HeadRun` that is filled while the model runs. Raises ValueError on leaving where the head did not run."""
    seen = HeadRun()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.features, seen.output, seen.copy = inputs[0], output, output.clone()
        seen.runs += 1

    handle = model.get_submodule(head).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen.runs:
        raise ValueError(f"the head {head!r} did not run in the forward pass; name the last layer that does with head=")


def features(model: nn.Module, inputs: Tensor, head: str) -> Tensor:
    """What enters the head for these inputs, one row an example: (examples, ...) -> (examples, features).

    Example:
        >>> import torch
        >>> features(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4), "2").shape
        torch.Size([3, 8])
    """
    with head_input(model, head) as seen:
        model(inputs)
    return seen.features.flatten(1)
