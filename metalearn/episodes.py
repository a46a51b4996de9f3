"""What a task is made of: examples to adapt on, and queries to be right about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """Inputs with their targets: `inputs` (examples, ...), `targets` (examples,) integer labels or (examples, outputs) values."""

    inputs: Tensor
    targets: Tensor

    def __repr__(self) -> str:
        return f"Examples(inputs={_short(self.inputs)}, targets={_short(self.targets)})"

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

    def __repr__(self) -> str:
        return f"Episode(support={self.support!r}, query={self.query!r})"

    def to(self, *args: object, **kwargs: object) -> Episode:
        """Move every tensor as `torch.Tensor.to` does; labels keep their dtype."""
        return Episode(self.support.to(*args, **kwargs), self.query.to(*args, **kwargs))


def stack(episodes: Iterable[Episode]) -> Episode:
    """Single tasks of equal shapes -> one stack with a leading task dimension."""
    listed = list(episodes)
    if not listed:
        raise ValueError("stack() got no episodes: it needs at least one task")
    return Episode(*(Examples(*(torch.stack(t) for t in zip(*part, strict=True))) for part in zip(*listed, strict=True)))


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


def _short(part: object) -> str:
    """A tensor by its shape and dtype, such as `75 x 1 x 28 x 28 float32`."""
    if not isinstance(part, Tensor):
        return f"<{type(part).__name__}>"
    shape = " x ".join(map(str, part.shape)) or "scalar"
    return f"{shape} {str(part.dtype).removeprefix('torch.')}"
