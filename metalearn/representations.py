"""What the layers of a network put out, and what enters its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forward import select
from .layers import resolve


@contextmanager
def representations(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that fills with the outputs of the named layers while the model runs; the hooks are gone afterwards.

    One entry of a layer that puts out a tuple or a dictionary is named after a colon: "lstm:0", "encoder:last_hidden_state".

    Raises ValueError, naming the layer, where one does not exist or puts out something else than a tensor (the entries are listed); and
    on leaving, where one did not run or ran more than once.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with representations(model, ["0", "1"]) as seen:
        ...     _ = model(torch.ones(3, 4))
        >>> {name: tuple(output.shape) for name, output in seen.items()}
        {'0': (3, 8), '1': (3, 8)}
    """
    seen: dict[str, Tensor] = {}
    paths = {name: _split(model, name) for name in names}
    runs: dict[str, int] = dict.fromkeys(paths, 0)

    def keep(name: str, path: str, entry: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            runs[name] += 1
            seen[name] = layer_output(output, path, entry).clone()  # what follows may write into it: torchvision's ReLUs do

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(keep(name, path, entry)) for name, (path, entry) in paths.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for name, count in runs.items():
        if count != 1:
            raise ValueError(f"layer {name!r} ran {count} times in the forward pass, so it has no one output; name a layer that runs once")


def layer_output(output: Any, path: str, entry: str = "") -> Tensor:
    """The tensor that the layer `path` returned, or the named entry of what it returned."""
    return select(output, entry or None, f"layer {path!r}", lambda other: repr(f"{path}:{other}"))


def _split(model: nn.Module, name: str) -> tuple[str, str]:
    """A layer and the entry named after it, "" where there is none."""
    path, colon, entry = name.rpartition(":")
    whole = not colon or name in dict(model.named_modules(remove_duplicate=False))
    return (resolve(model, name), "") if whole else (resolve(model, path), entry)


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
