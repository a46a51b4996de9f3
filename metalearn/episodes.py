"""A few-shot task: a support set to adapt to, and a query set to predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.network.forward import map_tensors, tensors_of
from metalearn.padding import PADDING, has_padding, padded, without_padding
from metalearn.runtime.checks import sequence


class Examples(NamedTuple):
    """Inputs with their targets.

    Attributes:
        inputs: a tensor (examples, ...), or a tuple or dictionary of such tensors for a model with
            several inputs.
        targets: integer labels (examples,), or real values (examples, outputs).
    """

    inputs: Any  # metalearn.network.forward.Inputs; a tensor in most uses
    targets: Tensor

    def __repr__(self) -> str:
        return f"Examples(inputs={_short(self.inputs)}, targets={_short(self.targets)})"

    def to(self, *args: object, **kwargs: object) -> Examples:
        """Move inputs and targets as `torch.Tensor.to` does; integer labels keep their dtype."""
        # A tensor of inputs takes the dtype; integers among several inputs are ids and masks.
        if isinstance(self.inputs, Tensor):
            inputs = self.inputs.to(*args, **kwargs)  # type: ignore[call-overload]
        else:
            inputs = map_tensors(lambda tensor: _to(tensor, *args, **kwargs), self.inputs)
        return Examples(inputs, _to(self.targets, *args, **kwargs))


class Episode(NamedTuple):
    """One task, or with a leading dimension on every tensor a stack of tasks.

    Attributes:
        support: the examples to adapt to.
        query: the examples to predict.

    Example:
        >>> import torch
        >>> support = Examples(torch.rand(5, 1, 28, 28), torch.arange(5))
        >>> query = Examples(torch.rand(75, 1, 28, 28), torch.arange(5).repeat_interleave(15))
        >>> task = Episode(support, query)
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


def stack(
    episodes: Iterable[Episode], *, pad: bool = False, indices: Sequence[int] | None = None
) -> Episode:
    """Stack single tasks, with a leading task dimension.

    Args:
        episodes: the tasks.
        pad: let tasks differ in their numbers of examples and classes. Shorter ones are padded with
            examples of the label `metalearn.padding.PADDING`, which learners leave out: they give
            the same numbers for the stack as for each task alone. Targets must be class labels.
        indices: the numbers of the tasks in an error message; by default from 0 on.

    Returns:
        An episode with tensors (tasks, examples, ...).

    Raises:
        ValueError: there are no tasks, or a task's sizes differ from the others'.
        TypeError: a task is not an `Episode`.

    Example:
        >>> import torch
        >>> pair = Examples(torch.rand(2, 3), torch.arange(2))
        >>> triple = Examples(torch.rand(3, 3), torch.arange(3))
        >>> tasks = stack([Episode(pair, pair), Episode(triple, triple)], pad=True)
        >>> tasks.query.targets
        tensor([[   0,    1, -100],
                [   0,    1,    2]])
    """
    tasks = sequence("episodes", episodes, "[task, task]")
    if not tasks:
        raise ValueError("stack() got no episodes: it needs at least one task")
    try:
        for task in tasks:
            _refuse_tensors(task)
        if pad:
            tasks = _of_equal_size(tasks)
        supports, queries = zip(*tasks, strict=True)
        return Episode(_stack_examples(supports), _stack_examples(queries))
    except (RuntimeError, TypeError, ValueError):
        # Looked for only now: checking every stack would cost time.
        numbers = range(len(tasks)) if indices is None else indices
        _refuse_unequal(tasks, numbers, pad=pad)
        raise


def _of_equal_size(tasks: Sequence[Episode]) -> list[Episode]:
    """The tasks, padded to one number of support and of query examples.

    Tasks whose targets are no class labels, or that have none, are left as they are.
    """
    support_labels = [support[1] for support, _ in tasks]
    query_labels = [query[1] for _, query in tasks]
    if not all(map(_are_labels, (*support_labels, *query_labels))):
        return list(tasks)
    shots = max(map(len, support_labels))
    queries = max(map(len, query_labels))
    ways = {int(labels.max()) for labels in support_labels}
    if len(ways) > 1:
        # Padding in every task tells, in any part of a stack, that tasks differ in classes.
        shots += 1
    return [
        Episode(Examples(*padded(*support, shots)), Examples(*padded(*query, queries)))
        for support, query in tasks
    ]


def _are_labels(targets: Tensor) -> bool:
    """Whether the targets of a task are class labels, at least one."""
    is_real = targets.is_floating_point() or targets.is_complex()
    return targets.ndim == 1 and len(targets) > 0 and not is_real


def _refuse_tensors(episode: Any) -> None:
    """Raise TypeError if a part is a tensor: of length two, it would pass for a pair."""
    if any(isinstance(part, Tensor) for part in episode):
        raise TypeError("a tensor is not a pair of inputs and targets")


def _refuse_unequal(episodes: list[Episode], indices: Sequence[int], *, pad: bool) -> None:
    """Raise an error naming what is not an episode, or the first task of other sizes."""
    cure = (
        "take one task at a time, with meta_batch=1 in meta_train and tasks_at_once=1 in evaluate,"
        " or stack class labels with stack(..., pad=True)"
    )
    if pad:
        cure = "padding takes tasks with class labels whose inputs have one shape"
    sizes = [
        check_episode(episode, f"task {index}")
        for episode, index in zip(episodes, indices, strict=True)
    ]
    for index, size in zip(indices, sizes, strict=True):
        for name, shape in size.items():
            if shape != sizes[0][name]:
                raise ValueError(
                    f"tasks of unequal size cannot be stacked: {name} are {shape} in task {index}"
                    f" and {sizes[0][name]} in task {indices[0]}; {cure}"
                )


def check_episode(episode: Any, name: str) -> dict[str, Any]:
    """Check that `episode` is an episode or a stack, and return the shapes of its tensors by name.

    Args:
        episode: the value to check.
        name: what it is called, for the message.

    Raises:
        TypeError: it is not an episode.
    """
    try:
        _refuse_tensors(episode)
        (inputs, targets), (query_inputs, query_targets) = episode
        # A list of two episodes has the form of an episode too, but its "targets" are pairs.
        if not isinstance(targets, Tensor) or not isinstance(query_targets, Tensor):
            raise TypeError("the targets are not tensors")
        return {
            "support inputs": _shape(inputs),
            "support targets": _shape(targets),
            "query inputs": _shape(query_inputs),
            "query targets": _shape(query_targets),
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is a {type(episode).__name__}; give an Episode(Examples(inputs, targets),"
            " Examples(inputs, targets))"
        ) from error


def _shape(part: Any) -> Any:
    """The shape of a tensor; a list of the shapes in a tuple or a dictionary."""
    if isinstance(part, Tensor):
        return tuple(part.shape)
    shapes = [tuple(tensor.shape) for tensor in tensors_of(part)]
    if not shapes:
        raise TypeError(f"a {type(part).__name__} holds no tensors")
    return shapes


def unstack(episodes: Episode) -> list[Episode]:
    """The single tasks of a stack, as views; of a padded stack without the padding.

    Raises:
        ValueError: the task dimension is missing, or differs between tensors; or a task has nothing
            but padding.
    """
    check_episode(episodes, "the stack of tasks")
    tensors: list[Tensor] = []  # support inputs, support targets, query inputs, query targets
    for inputs, targets in episodes:
        tensors += [*tensors_of(inputs), targets]
    sizes = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    # Targets have two dimensions at least: (tasks, examples).
    if len(set(sizes)) != 1 or min(tensor.ndim for tensor in tensors) < 2:
        raise ValueError(
            "a stack of tasks needs one leading task dimension on every tensor; support inputs,"
            f" support targets, query inputs and query targets have {sizes} entries along their"
            " first. Stack a single task by metalearn.episodes.stack([task])"
        )
    tasks = [part_of(episodes, number) for number in range(sizes[0])]
    if not is_padded(episodes):
        return tasks
    return [
        Episode(Examples(*without_padding(*support)), Examples(*without_padding(*query)))
        for support, query in tasks
    ]


def is_padded(episodes: Episode) -> bool:
    """Whether a stack of tasks holds padding (see `stack`).

    Raises:
        ValueError: a task has no support example or no query beside it.
    """
    found = False
    for name, (_, targets) in zip(("support example", "query"), episodes, strict=True):
        if not has_padding(targets):
            continue
        found = True
        empty = (targets == PADDING).all(-1).nonzero()
        if len(empty):
            raise ValueError(
                f"task {int(empty[0])} of the stack has no {name}: all its labels are {PADDING},"
                " which stands for padding; give it at least one"
            )
    return found


def part_of(episodes: Episode, index: int | slice | Tensor) -> Episode:
    """One task of a stack, or a shorter stack, as views; by a tensor of numbers in its order."""
    # A DataLoader may return plain lists in place of named tuples.
    support, query = episodes
    return Episode(_part_of_examples(*support, index), _part_of_examples(*query, index))


def _part_of_examples(inputs: Any, targets: Tensor, index: int | slice | Tensor) -> Examples:
    return Examples(map_tensors(lambda tensor: tensor[index], inputs), targets[index])


def _to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    """`tensor.to`, except that integers (labels, token ids and masks) keep their dtype."""
    moved: Tensor = tensor.to(*args, **kwargs)  # type: ignore[call-overload]
    return moved if tensor.is_floating_point() else moved.to(tensor.dtype)


def _stack_examples(examples: Sequence[Examples]) -> Examples:
    """The examples of several tasks, with a leading task dimension."""
    inputs, targets = zip(*examples, strict=True)
    return Examples(_stack(inputs), _stack(targets))


def _stack(parts: Sequence[Any]) -> Any:
    """The inputs or the targets of several tasks, with a leading task dimension."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(tuple(parts))
    if isinstance(first, Mapping):
        return {name: _stack([part[name] for part in parts]) for name in first}
    if isinstance(first, list | tuple):
        return tuple(_stack(column) for column in zip(*parts, strict=True))
    return first


def _short(part: Any) -> str:
    """A tensor's shape and dtype, such as `75 x 1 x 28 x 28 float32`, entry by entry."""
    if isinstance(part, Tensor):
        shape = " x ".join(map(str, part.shape)) or "scalar"
        return f"{shape} {str(part.dtype).removeprefix('torch.')}"
    if isinstance(part, Mapping):
        entries = ", ".join(f"{name}: {_short(value)}" for name, value in part.items())
        return f"{{{entries}}}"
    if isinstance(part, list | tuple):
        return f"({', '.join(map(_short, part))})"
    return f"<{type(part).__name__}>"
