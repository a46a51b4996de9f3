"""What a task is made of: examples to adapt on, and queries to be right about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .forward import map_tensors, tensors_of


class Examples(NamedTuple):
    """Inputs with their targets.

    `inputs` is a tensor (examples, ...), or a tuple or a dictionary of such tensors for a model that takes several; `targets` is
    (examples,) integer labels or (examples, outputs) values.
    """

    inputs: Any  # metalearn.forward.Inputs; a tensor in most uses
    targets: Tensor

    def to(self, *args: object, **kwargs: object) -> Examples:
        """Move inputs (and targets, but for their dtype where they are labels) as `torch.Tensor.to` does."""
        if isinstance(self.inputs, Tensor):
            inputs = self.inputs.to(*args, **kwargs)  # type: ignore[call-overload]
        else:
            inputs = map_tensors(lambda tensor: _to(tensor, *args, **kwargs), self.inputs)
        return Examples(inputs, _to(self.targets, *args, **kwargs))


class Episode(NamedTuple):
    """One task (or, with a leading dimension on every tensor, a stack of tasks): adapt on `support`, predict `query`.

    Example:
        >>> import torch
        >>> task = Episode(Examples(torch.rand(5, 1, 28, 28), torch.arange(5)),
        ...                Examples(torch.rand(75, 1, 28, 28), torch.arange(5).repeat_interleave(15)))
        >>> stack([task, task]).query.inputs.shape
        torch.Size([2, 75, 1, 28, 28])
    """

    support: Examples
    query: Examples

    def to(self, *args: object, **kwargs: object) -> Episode:
        """Move every tensor as `torch.Tensor.to` does; labels keep their dtype."""
        return Episode(self.support.to(*args, **kwargs), self.query.to(*args, **kwargs))


def stack(episodes: Iterable[Episode]) -> Episode:
    """Single tasks of equal shapes -> one stack with a leading task dimension."""
    listed = list(episodes)
    if not listed:
        raise ValueError("stack() got no episodes: it needs at least one task")
    return Episode(*(Examples(*(_stack(t) for t in zip(*part, strict=True))) for part in zip(*listed, strict=True)))


def unstack(episodes: Episode) -> list[Episode]:
    """A stack of tasks -> the single tasks, as views. Raises ValueError where the task dimension is missing or uneven."""
    support, query = episodes
    tensors = [*tensors_of(support.inputs), support.targets, *tensors_of(query.inputs), query.targets]
    sizes = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if len(set(sizes)) != 1 or min(tensor.ndim for tensor in tensors) < 2:
        raise ValueError(
            f"a stack of tasks needs one leading task dimension on every tensor; support inputs, support targets, query inputs "
            f"and query targets have {sizes} entries along their first. A single task is stacked by metalearn.episodes.stack([task])"
        )
    return [part_of(episodes, number) for number in range(sizes[0])]


def part_of(episodes: Episode, index: int | slice) -> Episode:
    """One task of a stack, or a shorter stack, as views."""
    return Episode(*(Examples(map_tensors(lambda t: t[index], part.inputs), part.targets[index]) for part in map(_examples, episodes)))


def _examples(pair: tuple[Any, Tensor]) -> Examples:
    return Examples(*pair)  # a DataLoader may have made a plain list of it


def _to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    """`tensor.to`, but integers keep their dtype: labels, token ids and masks."""
    moved: Tensor = tensor.to(*args, **kwargs)  # type: ignore[call-overload]
    return moved if tensor.is_floating_point() else moved.to(tensor.dtype)


def _stack(parts: Sequence[Any]) -> Any:
    """Inputs or targets of several tasks, tensor by tensor, with a leading task dimension."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(tuple(parts))
    if isinstance(first, Mapping):
        return {name: _stack([part[name] for part in parts]) for name in first}
    if isinstance(first, list | tuple):
        return tuple(_stack(column) for column in zip(*parts, strict=True))
    return first
