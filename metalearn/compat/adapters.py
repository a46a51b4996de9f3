"""Tasks and weights of learn2learn as ours, and back.

What is said of its classes holds for the real ones and for `compat.learn2learn`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from metalearn.episodes import Episode, Examples
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record
from metalearn.tasks.keyed_random import position, seeded

SPLITS = ("alternating", "first")
Target = TypeVar("Target", bound=nn.Module)


def from_learn2learn(
    taskset: Any,
    ways: int,
    shots: int,
    queries: int,
    *,
    tasks: int | None = None,
    split: str | None = None,
    seed: int = 0,
) -> TasksetEpisodes:
    """A learn2learn `Taskset` (or `TaskDataset`, or anything with `[i]` -> (data, labels)) as
    episodes for `evaluate` and `meta_train`.

    learn2learn draws the examples of a task together and leaves it to the script to split them.
    `split="alternating"` takes every other example of a class for support, which is what the even
    and odd indices of its MAML and ANIL examples come to; `split="first"` takes the first `shots`,
    as its ProtoNet example and `partition_task` do. By default the former where shots equal
    queries, else the latter. Examples come out grouped by class. Labels 0 to ways-1 stay as they
    are; others are numbered in the order in which they appear. Inputs keep their values and dtype.

    Args:
        taskset: its tasks need `ways` classes and at least `shots + queries` examples of each; what
            is over is left out.
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: how many tasks to take; the taskset's own number by default.
        split: "alternating" (shots must equal queries) or "first".
        seed: a task not yet drawn is drawn with Python's `random` seeded by (seed, index), so that
            it repeats.

    Raises ValueError for a taskset without end (num_tasks=-1) where `tasks` is not given, and for a
    task that does not fit.
    """
    endless = getattr(taskset, "num_tasks", None) == -1
    if endless and tasks is None:
        raise ValueError(
            "this taskset has no end (num_tasks=-1); say how many tasks to take with tasks="
        )
    count = len(taskset) if tasks is None else tasks
    if not endless and count > len(taskset):
        raise ValueError(
            f"tasks={tasks}, but the taskset has {len(taskset)} tasks; ask for at most those"
        )
    positive(ways=ways, shots=shots, queries=queries, tasks=count)
    return TasksetEpisodes(
        taskset, ways, shots, queries, count, _split(split, shots, queries), seed
    )


def to_learn2learn(episodes: Any, *, split: str | None = None) -> EpisodeTasks:
    """Our episodes (a `FewShot`, or any sequence of single tasks) as tasks (data, labels) with
    `sample()`, `[i]` and iteration.

    Examples are grouped by class; within a class support and query alternate, so that the even
    indices of a task are its support set, or (`split="first"`) the support examples come first, for
    `partition_task(data, labels, shots)`. By default alternating where a class has as many queries
    as shots, else first.

    Example:
        >>> from metalearn.tasks import FewShot, glyphs
        >>> data, labels = to_learn2learn(FewShot(glyphs("train"), ways=5, shots=1, queries=1, tasks=100)).sample()
        >>> data[0::2].shape, labels[0::2].tolist()
        (torch.Size([5, 1, 28, 28]), [0, 1, 2, 3, 4])
    """
    if split is not None:
        _known(split)
    return EpisodeTasks(episodes, split)


def copy_weights(source: nn.Module | Mapping[str, Tensor], target: Target) -> Target:
    """Copy all weights of `source` into `target`, in place, and return it: between learn2learn's
    MAML or Meta-SGD and ours, either way.

    Both may be a learner of ours, learn2learn's MAML or MetaSGD, or a bare network; the source also
    a state dict of any of them, so that a file is read by `copy_weights(torch.load(path,
    weights_only=True), learner)`. Names match but for the wrapper's (`module.`, `model.`), and
    between learn2learn's OmniglotCNN, CNN4 or MiniImagenetCNN and our Conv4. Meta-SGD's rates go
    along. Running statistics are copied where both keep them; a target's that the source lacks
    stay.

    Raises ValueError naming a parameter that either side lacks or that has another shape; nothing
    is changed then.

    Example:
        >>> from metalearn import MAML
        >>> from metalearn.compat import learn2learn as l2l
        >>> from metalearn.models import Conv4
        >>> theirs = l2l.algorithms.MAML(l2l.vision.models.OmniglotCNN(5), lr=0.5)
        >>> ours = copy_weights(theirs, MAML(Conv4(5, pool=False), lr=0.5))
        >>> torch.equal(ours.model.head.weight, theirs.module.classifier.weight)
        True
    """
    given, wanted = _tensors(source), _tensors(target)
    if not _parameters(wanted) <= given.keys():
        given, wanted = _as_conv4(given), _as_conv4(wanted)
    missing = sorted(_parameters(wanted) - given.keys())
    extra = sorted(_parameters(given) - wanted.keys())
    if missing or extra:
        what = f"the source has no {missing[0]}" if missing else f"the target has no {extra[0]}"
        raise ValueError(
            f"{what}: {len(missing)} weights are missing and {len(extra)} left over; copy between"
            " networks of one shape"
        )
    both = [name for name in wanted if name in given]
    for name in both:
        if wanted[name].shape != given[name].shape:
            raise ValueError(
                f"{name} is {tuple(given[name].shape)} in the source but"
                f" {tuple(wanted[name].shape)} in the target"
            )
    with torch.no_grad():
        for name in both:
            wanted[name].copy_(given[name])
    return target


class TasksetEpisodes(Dataset[Episode]):
    """What `from_learn2learn` returns: single-task episodes by index."""

    def __init__(
        self, taskset: Any, ways: int, shots: int, queries: int, tasks: int, split: str, seed: int
    ) -> None:
        self.taskset, self.split, self.seed = taskset, split, seeded(seed)
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        at = position(index, self.tasks)
        before = random.getstate()
        random.seed(f"{self.seed}, {at}")
        try:
            data, labels = self.taskset[at]
        finally:
            random.setstate(before)
        return self._episode(data, labels, at)

    def _episode(self, data: Tensor, labels: Tensor, at: int) -> Episode:
        classes = list(dict.fromkeys(labels.tolist()))
        if len(classes) != self.ways:
            raise ValueError(
                f"task {at} of the taskset has {len(classes)} classes but ways={self.ways}"
            )
        if sorted(classes) == list(range(self.ways)):
            classes.sort()
        needed = self.shots + self.queries
        support, query = [], []
        for name in classes:
            rows = (labels == name).nonzero().flatten()
            if len(rows) < needed:
                raise ValueError(
                    f"class {name} of task {at} has {len(rows)} examples but shots={self.shots} and"
                    f" queries={self.queries} need {needed}; build the taskset with KShots(dataset,"
                    f" k={needed})"
                )
            alternating = self.split == "alternating"
            support.append(rows[0 : 2 * self.shots : 2] if alternating else rows[: self.shots])
            query.append(rows[1 : 2 * self.shots : 2] if alternating else rows[self.shots : needed])
        numbers = torch.arange(self.ways, device=labels.device)
        return Episode(
            Examples(data[torch.cat(support)], numbers.repeat_interleave(self.shots)),
            Examples(data[torch.cat(query)], numbers.repeat_interleave(self.queries)),
        )

    def settings(self) -> Record:
        """A JSON-able record of the tasks, for result lines."""
        record = {
            name: getattr(self, name)
            for name in ("ways", "shots", "queries", "tasks", "split", "seed")
        }
        dataset = getattr(self.taskset, "dataset", self.taskset)
        return {
            **record,
            "data": {
                "source": f"learn2learn {type(getattr(dataset, 'dataset', dataset)).__name__}"
            },
        }


class EpisodeTasks(Dataset[tuple[Tensor, Tensor]]):
    """What `to_learn2learn` returns: tasks (data, labels), drawn by `sample()` with Python's
    `random` as learn2learn does.
    """

    def __init__(self, episodes: Any, split: str | None) -> None:
        self.episodes, self.split = episodes, split
        self.num_tasks = len(episodes)

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        support, query = self.episodes[position(index, self.num_tasks)]
        ways = int(support.targets.max()) + 1
        split = _split(self.split, len(support.targets) // ways, len(query.targets) // ways)
        data, labels = (
            torch.cat((support.inputs, query.inputs)),
            torch.cat((support.targets, query.targets)),
        )
        rows = []
        for name in range(ways):
            shots, queries = (
                (part.targets == name).nonzero().flatten() for part in (support, query)
            )
            queries = queries + len(support.targets)
            rows.append(
                torch.stack((shots, queries), 1).flatten()
                if split == "alternating"
                else torch.cat((shots, queries))
            )
        order = torch.cat(rows)
        return data[order], labels[order]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[i] for i in range(self.num_tasks))

    def sample(self) -> tuple[Tensor, Tensor]:
        """A task at random."""
        return self[random.randint(0, self.num_tasks - 1)]


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    return split


def _split(split: str | None, shots: int, queries: int) -> str:
    if split is None:
        return "alternating" if shots == queries else "first"
    if _known(split) == "alternating" and shots != queries:
        raise ValueError(
            f"support and query cannot alternate with {shots} shots and {queries} queries a class;"
            " use split='first'"
        )
    return split


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_CONV = re.compile(r"\b(?:base|features(?:\.1)?)\.(\d+)\.(conv|normalize)\.")
_HEAD = re.compile(r"\bclassifier\.")


def _parameters(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name for name in tensors if name.rpartition(".")[2] not in _STATISTICS}


def _tensors(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters and buffers by their names in it, and learned rates as `rate of
    <parameter>`.
    """
    state = source if isinstance(source, Mapping) else source.state_dict(keep_vars=True)
    network = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(("lrs.", "learned_rates."))
    }
    for wrapper in ("module.", "model."):
        if all(name.startswith(wrapper) for name in network):
            network = {name.removeprefix(wrapper): tensor for name, tensor in network.items()}
    own = {
        f"rate of {n.removeprefix('learned_rates.').replace('/', '.')}": t
        for n, t in state.items()
        if n.startswith("learned_rates.")
    }
    theirs = [state[f"lrs.{i}"] for i in range(sum(name.startswith("lrs.") for name in state))]
    return {**network, **own, **(_rates(network, theirs) if theirs else {})}


def _rates(network: Mapping[str, Tensor], rates: list[Tensor]) -> dict[str, Tensor]:
    """learn2learn numbers the rates in the order of the parameters, each tensor once whatever its
    names.
    """
    once = {
        network[name].data_ptr(): name
        for name in reversed(list(network))
        if name in _parameters(network)
    }
    names = list(reversed(once.values()))
    if len(names) != len(rates):
        raise ValueError(
            f"there are {len(rates)} rates (lrs) for {len(names)} parameters; give the state dict"
            " of one MetaSGD"
        )
    return {f"rate of {name}": rate for name, rate in zip(names, rates, strict=True)}


def _as_conv4(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that `metalearn.models.Conv4` gives to the same layers."""
    return {
        _CONV.sub(
            lambda m: f"block{int(m[1]) + 1}.{'conv' if m[2] == 'conv' else 'norm'}.",
            _HEAD.sub("head.", n),
        ): t
        for n, t in tensors.items()
    }
