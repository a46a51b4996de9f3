"""What a task is made of: examples to adapt on, and queries to be right about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """Inputs with their targets: `inputs` (examples, ...), `targets` (examples,) integer labels or (examples, outputs) values."""

    inputs: Tensor
    targets: Tensor

    def to(self, *args: object, **kwargs: object) -> Examples:
        """Move inputs (and targets, but for their dtype where they are labels) as `torch.Tensor.to` does."""
        inputs = self.inputs.to(*args, **kwargs)  # type: ignore[call-overload]
        dtype = inputs.dtype if self.targets.is_floating_point() else self.targets.dtype
        return Examples(inputs, self.targets.to(device=inputs.device, dtype=dtype))


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


def stack(episodes: Iterable[Episode], *, indices: Sequence[int] | None = None) -> Episode:
    """Single tasks of equal shapes -> one stack with a leading task dimension.

    Args:
        episodes: the tasks.
        indices: what the tasks are called in an error; by default their places, from 0 on.

    Raises:
        ValueError: if there are no tasks, or naming the first one whose sizes are not those of the others.
        TypeError: naming a task that is no `Episode`.
    """
    listed = list(episodes)
    if not listed:
        raise ValueError("stack() got no episodes: it needs at least one task")
    try:
        return Episode(*(Examples(*(torch.stack(t) for t in zip(*part, strict=True))) for part in zip(*listed, strict=True)))
    except (RuntimeError, TypeError, ValueError) as error:
        _refuse_unequal(listed, range(len(listed)) if indices is None else indices)
        raise error


def _refuse_unequal(episodes: list[Episode], indices: Sequence[int]) -> None:
    """Raise TypeError naming what is no episode, and ValueError naming the first task whose sizes are not the first one's."""
    sizes = [_sizes(episode, index) for episode, index in zip(episodes, indices, strict=True)]
    for index, size in zip(indices, sizes, strict=True):
        for name, shape in size.items():
            if shape != sizes[0][name]:
                raise ValueError(
                    f"tasks of unequal size cannot be stacked: {name} are {shape} in task {index} and {sizes[0][name]} in task "
                    f"{indices[0]}; take one task at a time, with meta_batch=1 in meta_train and tasks_at_once=1 in evaluate"
                )


def _sizes(episode: Episode, index: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an episode's tensors by name. Raises TypeError for what is no episode."""
    try:
        (support, labels), (query, answers) = episode
        tensors = {"support inputs": support, "support targets": labels, "query inputs": query, "query targets": answers}
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"task {index} is a {type(episode).__name__}; give an Episode(Examples(inputs, targets), Examples(inputs, targets))"
        ) from error


def unstack(episodes: Episode) -> list[Episode]:
    """A stack of tasks -> the single tasks, as views. Raises ValueError where the task dimension is missing or uneven."""
    support, query = episodes
    sizes = [len(t) for t in (*support, *query)]
    if len(set(sizes)) != 1 or min(t.ndim for t in (*support, *query)) < 2:
        raise ValueError(
            f"a stack of tasks needs one leading task dimension on every tensor; support inputs, support targets, query inputs "
            f"and query targets have {sizes} entries along their first. A single task is stacked by metalearn.episodes.stack([task])"
        )
    return [Episode(Examples(*s), Examples(*q)) for s, q in zip(zip(*support, strict=True), zip(*query, strict=True), strict=True)]
