"""What a task is made of: examples to adapt on, and queries to be right about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.network.forward import map_tensors, tensors_of
from metalearn.runtime.checks import sequence


class Examples(NamedTuple):
    """Inputs with their targets.

    `inputs` is a tensor (examples, ...), or a tuple or a dictionary of such tensors for a model
    that takes several; `targets` is (examples,) integer labels or (examples, outputs) values.
    """

    inputs: Any  # metalearn.network.forward.Inputs; a tensor in most uses
    targets: Tensor

    def __repr__(self) -> str:
        return f"Examples(inputs={_short(self.inputs)}, targets={_short(self.targets)})"

    def to(self, *args: object, **kwargs: object) -> Examples:
        """Move inputs (and targets, but for their dtype where they are labels) as `torch.Tensor.to`
        does.
        """
        if isinstance(self.inputs, Tensor):
            inputs = self.inputs.to(*args, **kwargs)  # type: ignore[call-overload]
        else:
            inputs = map_tensors(lambda tensor: _to(tensor, *args, **kwargs), self.inputs)
        return Examples(inputs, _to(self.targets, *args, **kwargs))


class Episode(NamedTuple):
    """One task (or, with a leading dimension on every tensor, a stack of tasks): adapt on
    `support`, predict `query`.

    Example:
        >>> import torch
        >>> task = Episode(Examples(torch.rand(5, 1, 28, 28), torch.arange(5)),
        ...                Examples(torch.rand(75, 1, 28, 28), torch.arange(5).repeat_interleave(15)))
        >>> stack([task, task]).query.inputs.shape
        torch.Size([2, 75, 1, 28, 28])
    """

    support: Examples
    query: Examples

    def __repr__(self) -> str:
        return f"Episode(support={self.support!r}, query={self.query!r})"

    def to(self, *args: object, **kwargs: object) -> Episode:
        """Move every tensor as `torch.Tensor.to` does; labels keep their dtype."""
        return Episode(self.support.to(*args, **kwargs), self.query.to(*args, **kwargs))


def stack(episodes: Iterable[Episode], *, indices: Sequence[int] | None = None) -> Episode:
    """Single tasks of equal shapes -> one stack with a leading task dimension.

    Args:
        episodes: the tasks.
        indices: what the tasks are called in an error; by default their places, from 0 on.

    Raises:
        ValueError: if there are no tasks, or naming the first one whose sizes are not those of the
            others.
        TypeError: naming a task that is no `Episode`.
    """
    listed = sequence("episodes", episodes, "[task, task]")
    if not listed:
        raise ValueError("stack() got no episodes: it needs at least one task")
    try:
        if any(isinstance(part, Tensor) for episode in listed for part in episode):
            raise TypeError(
                "a tensor is no pair of inputs and targets, but may have the length of one"
            )
        return Episode(
            *(
                Examples(*(_stack(t) for t in zip(*part, strict=True)))
                for part in zip(*listed, strict=True)
            )
        )
    except (RuntimeError, TypeError, ValueError) as error:
        _refuse_unequal(listed, range(len(listed)) if indices is None else indices)
        raise error


def _refuse_unequal(episodes: list[Episode], indices: Sequence[int]) -> None:
    """Raise TypeError naming what is no episode, and ValueError naming the first task whose sizes
    are not the first one's.
    """
    sizes = [
        check_episode(episode, f"task {index}")
        for episode, index in zip(episodes, indices, strict=True)
    ]
    for index, size in zip(indices, sizes, strict=True):
        for name, shape in size.items():
            if shape != sizes[0][name]:
                raise ValueError(
                    f"tasks of unequal size cannot be stacked: {name} are {shape} in task {index}"
                    f" and {sizes[0][name]} in task {indices[0]}; take one task at a time, with"
                    " meta_batch=1 in meta_train and tasks_at_once=1 in evaluate"
                )


def check_episode(episode: Any, name: str) -> dict[str, Any]:
    """The shapes of the tensors of an episode, or of a stack, by name.

    Raises TypeError, with the `name`, for what is no episode.
    """
    try:
        if any(isinstance(part, Tensor) for part in episode):
            raise TypeError("a tensor is no pair of inputs and targets")
        (support, labels), (query, answers) = episode
        tensors = {
            "support inputs": support,
            "support targets": labels,
            "query inputs": query,
            "query targets": answers,
        }
        if not isinstance(labels, Tensor) or not isinstance(
            answers, Tensor
        ):  # a list of two episodes has the form of one, too
            raise TypeError("the targets are no tensors")
        return {name: _shape(tensor) for name, tensor in tensors.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is a {type(episode).__name__}; give an Episode(Examples(inputs, targets),"
            " Examples(inputs, targets))"
        ) from error


def _shape(part: Any) -> Any:
    """The shapes of inputs or targets: of a tensor, or of each tensor of a tuple or a dictionary."""
    if isinstance(part, Tensor):
        return tuple(part.shape)
    shapes = [tuple(tensor.shape) for tensor in tensors_of(part)]
    if not shapes:
        raise TypeError(f"a {type(part).__name__} holds no tensors")
    return shapes


def unstack(episodes: Episode) -> list[Episode]:
    """A stack of tasks -> the single tasks, as views.

    Raises ValueError where the task dimension is missing or uneven.
    """
    check_episode(episodes, "the stack of tasks")
    support, query = map(_examples, episodes)
    tensors = [
        *tensors_of(support.inputs),
        support.targets,
        *tensors_of(query.inputs),
        query.targets,
    ]
    sizes = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if len(set(sizes)) != 1 or min(tensor.ndim for tensor in tensors) < 2:
        raise ValueError(
            "a stack of tasks needs one leading task dimension on every tensor; support inputs,"
            f" support targets, query inputs and query targets have {sizes} entries along their"
            " first. A single task is stacked by metalearn.episodes.stack([task])"
        )
    return [part_of(episodes, number) for number in range(sizes[0])]


def part_of(episodes: Episode, index: int | slice) -> Episode:
    """One task of a stack, or a shorter stack, as views."""
    return Episode(
        *(
            Examples(map_tensors(lambda t: t[index], part.inputs), part.targets[index])
            for part in map(_examples, episodes)
        )
    )


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


def _short(part: Any) -> str:
    """A tensor by its shape and dtype, such as `75 x 1 x 28 x 28 float32`; tuples and dictionaries
    of them entry by entry.
    """
    if isinstance(part, Tensor):
        shape = " x ".join(map(str, part.shape)) or "scalar"
        return f"{shape} {str(part.dtype).removeprefix('torch.')}"
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{name}: {_short(value)}" for name, value in part.items()) + "}"
    if isinstance(part, list | tuple):
        return "(" + ", ".join(map(_short, part)) + ")"
    return f"<{type(part).__name__}>"
