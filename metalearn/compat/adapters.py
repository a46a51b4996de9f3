"""Tasks and weights between learn2learn and metalearn, in both directions.

learn2learn's classes may be the real ones or those of `compat.learn2learn`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from metalearn.data.decoding import check_choice
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
    """Use the tasks of learn2learn as episodes for `evaluate` and `meta_train`.

    learn2learn draws the examples of a task together, and the script splits them into support and
    query. Here examples are grouped by class. Labels 0 to ways-1 do not change; others are numbered
    in the order in which they appear. Inputs keep their values and dtype.

    Args:
        taskset: a `Taskset`, a `TaskDataset`, or anything with `[i]` -> (data, labels). Its tasks
            need `ways` classes and at least `shots + queries` examples of each; further examples
            are not used.
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: the number of tasks to use; all by default.
        split: "alternating" takes every other example of a class for support, as the even and odd
            indices in learn2learn's MAML and ANIL examples do; shots must equal queries. "first"
            takes the first `shots`, as its ProtoNet example and `partition_task` do. By default
            "alternating" if shots equal queries, else "first".
        seed: a task that the taskset has not drawn yet is drawn with Python's `random` seeded by
            (seed, index), so it repeats.

    Raises:
        ValueError: if `tasks` is missing for a taskset without end (num_tasks=-1), or a task does
            not fit.
    """
    endless = getattr(taskset, "num_tasks", None) == -1
    if endless and tasks is None:
        raise ValueError(
            "this taskset has no end (num_tasks=-1); give the number of tasks to use with tasks="
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
    """Use episodes as learn2learn's tasks (data, labels), with `sample()`, `[i]` and iteration.

    Args:
        episodes: a `FewShot`, or any sequence of single tasks.
        split: the order of the examples within a class. With "alternating" the even indices of a
            task are its support set; with "first" the support examples come first, for
            `partition_task(data, labels, shots)`. By default "alternating" if a class has as many
            queries as shots, else "first".

    Example:
        >>> from metalearn.tasks import FewShot, glyphs
        >>> episodes = FewShot(glyphs("train"), ways=5, shots=1, queries=1, tasks=100)
        >>> data, labels = to_learn2learn(episodes).sample()
        >>> data[0::2].shape, labels[0::2].tolist()
        (torch.Size([5, 1, 28, 28]), [0, 1, 2, 3, 4])
    """
    if split is not None:
        check_choice("split", split, SPLITS)
    return EpisodeTasks(episodes, split)


def copy_weights(source: nn.Module | Mapping[str, Tensor], target: Target) -> Target:
    """Copy all weights between learn2learn's MAML or Meta-SGD and ours, in place.

    Names match without the wrapper's prefix (`module.`, `model.`), and between learn2learn's
    OmniglotCNN, CNN4 or MiniImagenetCNN and our Conv4. The rates of Meta-SGD are copied too, and
    running statistics if both sides have them.

    Args:
        source: a learner of ours, learn2learn's MAML or MetaSGD, a bare network, or a state dict of
            any of them: `copy_weights(torch.load(path, weights_only=True), learner)` reads a file.
        target: a learner or a network.

    Returns:
        The target.

    Raises:
        ValueError: naming a parameter that either side lacks or that has another shape. Nothing is
            changed then.

    Example:
        >>> from metalearn import MAML
        >>> from metalearn.compat import learn2learn as l2l
        >>> from metalearn.models import Conv4
        >>> source = l2l.algorithms.MAML(l2l.vision.models.OmniglotCNN(5), lr=0.5)
        >>> learner = copy_weights(source, MAML(Conv4(5, pool=False), lr=0.5))
        >>> torch.equal(learner.model.head.weight, source.module.classifier.weight)
        True
    """
    sources = _tensors(source)
    targets = _tensors(target)
    # Names differ: try those that Conv4 and learn2learn's networks share.
    if not _parameters(targets) <= sources.keys():
        sources = _as_conv4(sources)
        targets = _as_conv4(targets)
    missing = sorted(_parameters(targets) - sources.keys())
    extra = sorted(_parameters(sources) - targets.keys())
    if missing or extra:
        fault = f"the source has no {missing[0]}" if missing else f"the target has no {extra[0]}"
        raise ValueError(
            f"{fault}: {len(missing)} weights are missing and {len(extra)} left over; copy between"
            " networks of one shape"
        )
    common = [name for name in targets if name in sources]
    for name in common:
        if targets[name].shape != sources[name].shape:
            raise ValueError(
                f"{name} is {tuple(sources[name].shape)} in the source but"
                f" {tuple(targets[name].shape)} in the target"
            )
    with torch.no_grad():
        for name in common:
            targets[name].copy_(sources[name])
    return target


class TasksetEpisodes(Dataset[Episode]):
    """Single-task episodes by index, as `from_learn2learn` returns them."""

    def __init__(
        self, taskset: Any, ways: int, shots: int, queries: int, tasks: int, split: str, seed: int
    ) -> None:
        self.taskset = taskset
        self.ways = ways
        self.shots = shots
        self.queries = queries
        self.tasks = tasks
        self.split = split
        self.seed = seeded(seed)

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        number = position(index, self.tasks)
        # A draw must not change the generator of the script.
        before = random.getstate()
        random.seed(f"{self.seed}, {number}")
        try:
            data, labels = self.taskset[number]
        finally:
            random.setstate(before)
        return self._episode(data, labels, number)

    def _episode(self, data: Tensor, labels: Tensor, number: int) -> Episode:
        """The examples of a task as support and query."""
        classes = list(dict.fromkeys(labels.tolist()))  # in the order in which they appear
        if len(classes) != self.ways:
            raise ValueError(
                f"task {number} of the taskset has {len(classes)} classes but ways={self.ways}"
            )
        if sorted(classes) == list(range(self.ways)):
            classes.sort()
        needed = self.shots + self.queries
        support: list[Tensor] = []  # the rows of each class
        query: list[Tensor] = []
        for name in classes:
            rows = (labels == name).nonzero().flatten()
            if len(rows) < needed:
                raise ValueError(
                    f"class {name} of task {number} has {len(rows)} examples but"
                    f" shots={self.shots} and queries={self.queries} need {needed}; build the"
                    f" taskset with KShots(dataset, k={needed})"
                )
            if self.split == "alternating":
                support.append(rows[0:needed:2])
                query.append(rows[1:needed:2])
            else:
                support.append(rows[: self.shots])
                query.append(rows[self.shots : needed])
        # Examples are grouped by class, so labels are runs of equal numbers.
        numbers = torch.arange(self.ways, device=labels.device)
        return Episode(
            Examples(data[torch.cat(support)], numbers.repeat_interleave(self.shots)),
            Examples(data[torch.cat(query)], numbers.repeat_interleave(self.queries)),
        )

    def settings(self) -> Record:
        """A JSON-able record of the tasks, for result lines."""
        names = ("ways", "shots", "queries", "tasks", "split", "seed")
        record = {name: getattr(self, name) for name in names}
        # A taskset has a MetaDataset, which has the data set itself.
        dataset = getattr(self.taskset, "dataset", self.taskset)
        dataset = getattr(dataset, "dataset", dataset)
        return {**record, "data": {"source": f"learn2learn {type(dataset).__name__}"}}


class EpisodeTasks(Dataset[tuple[Tensor, Tensor]]):
    """Tasks (data, labels), as `to_learn2learn` returns them.

    `sample()` draws with Python's `random`, as learn2learn does.
    """

    def __init__(self, episodes: Any, split: str | None) -> None:
        self.episodes = episodes
        self.split = split
        self.num_tasks = len(episodes)

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        support, query = self.episodes[position(index, self.num_tasks)]
        ways = int(support.targets.max()) + 1
        split = _split(self.split, len(support.targets) // ways, len(query.targets) // ways)
        data = torch.cat((support.inputs, query.inputs))
        labels = torch.cat((support.targets, query.targets))
        rows: list[Tensor] = []  # of each class
        for label in range(ways):
            shots = (support.targets == label).nonzero().flatten()
            queries = (query.targets == label).nonzero().flatten() + len(support.targets)
            if split == "alternating":
                rows.append(torch.stack((shots, queries), 1).flatten())
            else:
                rows.append(torch.cat((shots, queries)))
        order = torch.cat(rows)
        return data[order], labels[order]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[i] for i in range(self.num_tasks))

    def sample(self) -> tuple[Tensor, Tensor]:
        """A task at random."""
        return self[random.randint(0, self.num_tasks - 1)]


def _split(split: str | None, shots: int, queries: int) -> str:
    """The split with its default. Raises ValueError if it does not exist or does not fit."""
    if split is None:
        return "alternating" if shots == queries else "first"
    check_choice("split", split, SPLITS)
    if split == "alternating" and shots != queries:
        raise ValueError(
            f"support and query cannot alternate with {shots} shots and {queries} queries a class;"
            " use split='first'"
        )
    return split


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Blocks and head in the names of learn2learn's OmniglotCNN, CNN4 and MiniImagenetCNN.
_CONV = re.compile(r"\b(?:base|features(?:\.1)?)\.(\d+)\.(conv|normalize)\.")
_HEAD = re.compile(r"\bclassifier\.")


def _parameters(tensors: Mapping[str, Tensor]) -> set[str]:
    """The names without those of running statistics."""
    return {name for name in tensors if name.rpartition(".")[2] not in _STATISTICS}


def _tensors(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the network, and rates as `rate of <parameter>`."""
    # keep_vars gives the parameters themselves, so copies into them change the network.
    state = source if isinstance(source, Mapping) else source.state_dict(keep_vars=True)
    network: dict[str, Tensor] = {}
    rates: dict[str, Tensor] = {}  # of our MetaSGD, by parameter
    numbered: list[Tensor] = []  # rates of learn2learn's, in the order of the parameters
    for name, tensor in state.items():
        if name.startswith("learned_rates."):
            parameter = name.removeprefix("learned_rates.").replace("/", ".")
            rates[f"rate of {parameter}"] = tensor
        elif name.startswith("lrs."):
            numbered.append(state[f"lrs.{len(numbered)}"])
        else:
            network[name] = tensor
    # learn2learn wraps the network as `module`, metalearn as `model`.
    for wrapper in ("module.", "model."):
        if all(name.startswith(wrapper) for name in network):
            network = {name.removeprefix(wrapper): tensor for name, tensor in network.items()}
    if numbered:
        rates |= _rates(network, numbered)
    return {**network, **rates}


def _rates(network: Mapping[str, Tensor], rates: list[Tensor]) -> dict[str, Tensor]:
    """The rates of learn2learn's MetaSGD by parameter.

    It numbers them in the order of the parameters, tied ones once.
    """
    parameters = _parameters(network)
    first_names: dict[int, str] = {}  # address of a tensor -> its first name
    for name, tensor in network.items():
        if name in parameters:
            first_names.setdefault(tensor.data_ptr(), name)
    names = list(first_names.values())
    if len(names) != len(rates):
        raise ValueError(
            f"there are {len(rates)} rates (lrs) for {len(names)} parameters; give the state dict"
            " of one MetaSGD"
        )
    return {f"rate of {name}": rate for name, rate in zip(names, rates, strict=True)}


def _as_conv4(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that `metalearn.models.Conv4` gives to the same layers."""
    return {_CONV.sub(_block, _HEAD.sub("head.", name)): tensor for name, tensor in tensors.items()}


def _block(match: re.Match[str]) -> str:
    """The name of a layer in Conv4, whose blocks are numbered from 1."""
    layer = "conv" if match[2] == "conv" else "norm"
    return f"block{int(match[1]) + 1}.{layer}."
