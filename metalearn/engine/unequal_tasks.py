"""Tasks of unequal size in one padded stack: vectorized in groups of like size, or one by one.

In a loop and in threads every task runs without its padding. Vectorized, padding is exact only if
no example depends on others and the loss leaves padded ones out. Tasks are then sorted by size, so
that little of the work is spent on padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.episodes import Episode, Examples
from metalearn.network.forward import map_tensors, tensors_of
from metalearn.network.module_call import is_plain
from metalearn.network.norm import statistics
from metalearn.padding import PADDING, is_padding

from .solver import Solver

# What Python and the dispatch of operations cost a group of tasks, in multiplications. It was
# measured for ANIL and ProtoNet on features, is rough, and decides the time alone.
OVERHEAD = 3 * 10**7


@dataclass(frozen=True)
class Ordered:
    """A stack in the order in which its tasks run.

    Attributes:
        episodes: the stack in that order.
        order: the number of each of its tasks in the caller's stack; None if it is the same.
    """

    episodes: Episode
    order: Tensor | None = None

    def restored(self, results: Tensor) -> Tensor:
        """Results of the tasks (tasks, ...) in the order of the caller's stack."""
        if self.order is None:
            return results
        return results[self.order.argsort().to(results.device)]


def takes_padding(learner: Solver) -> bool:
    """Whether a vectorized padded stack gives each task what it gives alone.

    The class of the learner declares it by its attribute `takes_padding`, which a subclass does not
    inherit, because its code may do more. The network must be known to treat every example by
    itself, which batch norm with the statistics of the current batch does not.
    """
    if not vars(type(learner)).get("takes_padding", False):
        return False
    if not is_plain(learner.model) or "batch statistics" in statistics(learner.model):
        return False
    return _leaves_padding_out(learner.loss)


def _leaves_padding_out(loss: object) -> bool:
    """Whether a loss is the mean cross-entropy over examples without the label of padding."""
    if isinstance(loss, nn.CrossEntropyLoss):
        plain = loss.weight is None and not loss.label_smoothing
        return plain and loss.ignore_index == PADDING and loss.reduction == "mean"
    return loss is F.cross_entropy


def by_size(episodes: Episode) -> Tensor:
    """The order of the tasks of a padded stack by size, (tasks,)."""
    return _sizes(episodes).sum(1).argsort(stable=True)


def groups(learner: Solver, episodes: Episode, most: int) -> Iterator[slice]:
    """Neighbours of a padded stack, sorted by size, that are vectorized together.

    Args:
        learner: whose network decides what an example costs.
        episodes: the stack.
        most: tasks of a group.
    """
    sizes = _sizes(episodes)
    # A group more is worth it if it saves so many examples.
    worth = OVERHEAD / _cost(learner, episodes)
    for start in range(0, len(sizes), most):
        chunk = sizes[start : start + most]
        for first, end in _parted(chunk, worth):
            yield slice(start + first, start + end)


def _parted(sizes: Tensor, worth: float) -> list[tuple[int, int]]:
    """Cut tasks, sorted by size, into groups as long as a cut saves `worth` examples.

    Args:
        sizes: support and query examples of each task (tasks, 2).
        worth: padded examples that a group more must save.

    Returns:
        The first task of every group, and the one after its last.
    """
    whole = (0, len(sizes))
    cuts = range(1, len(sizes))
    if not cuts:
        return [whole]
    together = [_padded(sizes[:cut]) + _padded(sizes[cut:]) for cut in cuts]
    cut = 1 + min(range(len(together)), key=together.__getitem__)
    if _padded(sizes) - together[cut - 1] < worth:
        return [whole]
    after = [(cut + first, cut + end) for first, end in _parted(sizes[cut:], worth)]
    return _parted(sizes[:cut], worth) + after


def _padded(sizes: Tensor) -> int:
    """The examples of a group of tasks with its padding; sizes are (tasks, 2)."""
    return len(sizes) * int(sizes.amax(0).sum())


def _cost(learner: Solver, episodes: Episode) -> int:
    """Roughly the multiplications for an example: a weight is used once, or once a position."""
    weights = sum(parameter.numel() for parameter in learner.parameters())
    shape = tensors_of(episodes.query.inputs)[0].shape
    # (tasks, queries, channels, height, width); features and tokens have no height and width
    return max(1, weights * math.prod(shape[3:]))


def _sizes(episodes: Episode) -> Tensor:
    """The support and query examples of each task of a stack, on the CPU, (tasks, 2)."""
    return torch.stack([(~is_padding(part[1])).sum(1) for part in episodes], 1).cpu()


def trimmed(episodes: Episode) -> Episode:
    """A stack without the padding that all of its tasks have."""
    (inputs, targets), (query_inputs, query_targets) = episodes
    shots = _longest(targets)
    if len(targets.amax(-1).unique()) > 1:
        # One is kept: it tells that the tasks differ in their classes.
        shots += 1
    queries = _longest(query_targets)
    return Episode(
        Examples(map_tensors(lambda tensor: tensor[:, :shots], inputs), targets[:, :shots]),
        Examples(
            map_tensors(lambda tensor: tensor[:, :queries], query_inputs),
            query_targets[:, :queries],
        ),
    )


def _longest(targets: Tensor) -> int:
    """The place after the last example that is no padding in any task of a stack."""
    used = (~is_padding(targets)).any(0).nonzero()
    return int(used[-1]) + 1


def joined(logits: Sequence[Tensor]) -> Tensor:
    """The logits of parts of a stack in one tensor (tasks, queries, ways).

    Where a part has fewer queries, zeros follow; where it has fewer ways, minus infinity.
    """
    first = logits[0]
    if all(part.shape[1:] == first.shape[1:] for part in logits):
        return torch.cat(list(logits))
    queries = max(part.shape[1] for part in logits)
    ways = max(part.shape[2] for part in logits)
    parts = []
    for part in logits:
        wide = F.pad(part, (0, ways - part.shape[2]), value=-torch.inf)
        parts.append(F.pad(wide, (0, 0, 0, queries - part.shape[1])))
    return torch.cat(parts)
