"""The score of a learner on test tasks, with its interval, and two learners on the same tasks."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from metalearn.algorithms.base import Learner
from metalearn.engine.solver import check_unwrapped
from metalearn.episodes import Episode, Examples, is_padded, stack, unstack
from metalearn.network.forward import tensors_of
from metalearn.network.modes import evaluation_mode
from metalearn.padding import is_padding
from metalearn.runtime import distributed, random_state
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.statistics import confidence_half_width, t_test
from metalearn.runtime.tables import Tabular
from metalearn.tasks.few_shot import FewShot
from metalearn.tasks.mixture import Mixture


class Tasks(Protocol):
    """Single tasks by index, such as `FewShot`, `Sinusoid`, or a list of episodes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Episode: ...


@dataclass(frozen=True)
class Evaluation(Tabular):
    """The scores of a learner on test tasks.

    Args:
        per_episode: the score of each task, (tasks,) float64.
        measure: "accuracy" (0 to 1) for integer targets, "loss" (the learner's own, for each task)
            for real targets.
        fingerprints: a checksum of each task's data, by which `paired` checks that two learners saw
            the same tasks.
        settings: a JSON-able record of the learner and the episodes.

    Example:
        >>> print(Evaluation(torch.tensor([0.5, 1.0, 0.75, 0.75], dtype=torch.float64)))
        75.00 % ± 32.48 (95 % interval over 4 tasks)
    """

    per_episode: Tensor
    measure: str = "accuracy"
    fingerprints: tuple[int, ...] = field(default=(), repr=False)
    settings: Record = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return float(self.per_episode.mean())

    @property
    def interval(self) -> float:
        """The half-width of the mean's 95 % interval over tasks; NaN for a single task.

        It is `1.96 std(ddof=1) / sqrt(tasks)`, or Student's below 30 tasks (see
        `metalearn.runtime.statistics.confidence_half_width`). It does not cover seeds.
        """
        return confidence_half_width(self.per_episode)

    @property
    def at_chance(self) -> bool:
        """Whether each of several tasks scores exactly 1 / ways.

        A learner that predicts one class for every query does. Tasks whose ways are drawn have no
        common chance level.
        """
        ways = self.settings.get("episodes", {}).get("ways")
        if self.measure != "accuracy" or len(self.per_episode) < 2 or not isinstance(ways, int):
            return False
        return bool((self.per_episode == 1 / ways).all())

    def __str__(self) -> str:
        tasks = len(self.per_episode)
        spread = "(no interval: one task)"
        if tasks > 1:
            interval = _interval_text(self.interval, self.measure)
            chance = ""
            if self.at_chance:
                chance = "; every task at exactly chance, as if one class is predicted everywhere"
            # accuracy is in percent, its interval in points
            spread = f"± {interval} (95 % interval over {tasks} tasks{chance})"
        if self.measure == "accuracy":
            return f"{100 * self.mean:.2f} % {spread}"
        return f"loss {self.mean:.4g} {spread}"

    def records(self) -> list[dict[str, Any]]:
        """One row for each task."""
        rows: list[dict[str, Any]] = []
        sources = self.settings.get("task_sources")
        for task, value in enumerate(self.per_episode.tolist()):
            row = {"task": task, self.measure: value}
            if sources:  # the tasks are of a Mixture
                row["source"] = sources[task]
            rows.append(row)
        return rows

    def to_dict(self) -> Record:
        """The evaluation as a JSON-able record; the interval of a single task is None."""
        interval = None if math.isnan(self.interval) else self.interval
        return {
            "measure": self.measure,
            "mean": self.mean,
            "interval": interval,
            "tasks": len(self.per_episode),
            "at_chance": self.at_chance,
            "per_episode": self.per_episode.tolist(),
            **self.settings,
        }


@dataclass(frozen=True)
class Paired:
    """The difference a - b of two learners on the same tasks.

    Attributes:
        mean: the mean difference.
        interval: the half-width of its 95 % interval (see
            `metalearn.runtime.statistics.confidence_half_width`).
        t: Student's t of the paired test.
        p: its two-sided p value.
        tasks: the number of tasks.
        measure: "accuracy" or "loss".
    """

    mean: float
    interval: float
    t: float
    p: float
    tasks: int
    measure: str = "accuracy"

    def __str__(self) -> str:
        mean = f"{self.mean:+.4g} loss"
        if self.measure == "accuracy":
            mean = f"{100 * self.mean:+.2f} points"
        interval = _interval_text(self.interval, self.measure)
        return (
            f"{mean} ± {interval} (95 % interval, paired over {self.tasks} tasks;"
            f" t = {self.t:.2f}, p = {self.p:.2g})"
        )


def paired(a: Evaluation, b: Evaluation) -> Paired:
    """Compare two learners on the same tasks: the mean of a - b with its interval, t and p.

    Args:
        a: the evaluation of one learner.
        b: the evaluation of the other.

    Raises:
        ValueError: the two did not see the same tasks in the same order, differ in measure, or saw
            fewer than two tasks.

    Example:
        >>> a = Evaluation(torch.tensor([0.9, 0.8, 1.0], dtype=torch.float64))
        >>> b = Evaluation(torch.tensor([0.7, 0.7, 0.9], dtype=torch.float64))
        >>> print(paired(a, b))
        +13.33 points ± 14.34 (95 % interval, paired over 3 tasks; t = 4.00, p = 0.057)
    """
    _check_pair(a, b)
    difference = a.per_episode - b.per_episode  # (tasks,)
    mean = float(difference.mean())
    t, p = t_test(difference.numpy())
    if math.isnan(p):  # every task differs by the same number, so there is no spread
        t = math.copysign(math.inf, mean)
        p = 0.0
    return Paired(mean, confidence_half_width(difference), t, p, len(difference), a.measure)


def _check_pair(a: Evaluation, b: Evaluation) -> None:
    """Raise ValueError if two evaluations are not of the same tasks and measure."""
    if a.measure != b.measure:
        raise ValueError(
            f"one evaluation holds {a.measure} and the other {b.measure}; compare two of the same"
            " measure"
        )
    if len(a.per_episode) != len(b.per_episode):
        raise ValueError(
            f"{len(a.per_episode)} tasks against {len(b.per_episode)}: evaluate both learners on"
            " the same episodes"
        )
    if len(a.per_episode) < 2:
        raise ValueError(
            "a paired comparison needs at least two tasks, since one difference has no spread"
        )
    pairs = zip(a.fingerprints, b.fingerprints, strict=True)
    different = [task for task, (mark_a, mark_b) in enumerate(pairs) if mark_a != mark_b]
    if different:
        raise ValueError(
            f"{len(different)} of {len(a.per_episode)} tasks differ between the two, the first"
            f" being task {different[0]}; evaluate both learners on the same episodes in the same"
            " order (one FewShot, or a DataLoader without shuffle)"
        )


def evaluate(
    learner: Learner,
    episodes: Tasks | DataLoader[Episode] | Episode,
    *,
    progress: bool = False,
    tasks_at_once: int = 16,
) -> Evaluation:
    """Adapt a learner to each task and score its queries.

    The learner is in evaluation mode, and no gradient reaches it. If torchrun started several
    ranks, all of them must call this: each takes a share of the tasks, and all return the result of
    a single process.

    Args:
        learner: any `Learner`; episodes are moved to its device and dtype.
        episodes: tasks by index (`FewShot`), a `DataLoader` of stacks, or one stack.
        progress: show rate and time left.
        tasks_at_once: tasks in one call of the learner, for tasks by index or one stack. More need
            more memory and do not change the result.

    Returns:
        The score of each task, with the mean and its interval.

    Raises:
        ValueError: there are no tasks.
        FloatingPointError: a prediction is NaN; the message names the task.

    Example:
        >>> from metalearn import MAML
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> len(evaluate(learner, Sinusoid(tasks=3)).per_episode)
        3
    """
    return evaluate_together(
        {"learner": learner}, episodes, progress=progress, tasks_at_once=tasks_at_once
    )["learner"]


def evaluate_together(
    learners: Mapping[str, Learner],
    episodes: Tasks | DataLoader[Episode] | Episode,
    *,
    progress: bool = False,
    tasks_at_once: int = 16,
) -> dict[str, Evaluation]:
    """`evaluate` for several learners by name, with each task loaded once for all of them.

    Any two of the results can be compared by `paired`. For the arguments see `evaluate`.

    Args:
        learners: by name.
        episodes: tasks by index, a `DataLoader` of stacks, or one stack.
        progress: show rate and time left.
        tasks_at_once: tasks in one call of a learner.
    """
    for learner in learners.values():
        check_learner(learner)
    distributed.join(_like(next(iter(learners.values()), nn.Module())).device)
    with distributed.failing_together():
        tasks_at_once = whole_number("tasks_at_once", tasks_at_once)
        check_tasks("test tasks", episodes)
    _check_same(learners, episodes, tasks_at_once)
    scores = _Scores(learners)
    # An error on one rank stops all of them.
    with (
        distributed.failing_together(),
        torch.no_grad(),
        evaluation_mode(learners.values()),
        shown_progress(
            "evaluating",
            _count(episodes),
            unit="task",
            shown=progress and distributed.rank() == 0,
        ) as advance,
    ):
        for count, tasks in _shared_out(episodes, tasks_at_once):
            if tasks is None:
                scores.leave_out(count)
            else:
                scores.add(tasks)
            advance(count)
        if not scores.tasks:
            raise ValueError("there are no episodes to evaluate on; ask for at least one task")
    return scores.evaluations(episodes)


class _Scores:
    """The scores of this rank's tasks. The tasks of other ranks count as zero, for the sum."""

    def __init__(self, learners: Mapping[str, Learner]) -> None:
        self.learners = learners
        self.tasks = 0
        self.measure = "accuracy"
        self.checksums: list[Tensor] = []  # (tasks of a stack,) for each stack
        self.per_learner: dict[str, list[Tensor]] = {name: [] for name in learners}

    def add(self, episodes: Episode) -> None:
        """Score a stack of tasks."""
        check_examples(episodes)
        self.measure = "loss" if episodes.query.targets.is_floating_point() else "accuracy"
        self.checksums.append(fingerprints(episodes))
        for name, learner in self.learners.items():
            self.per_learner[name].append(_score(learner, episodes, self.tasks))
        self.tasks += len(episodes.query.targets)

    def leave_out(self, count: int) -> None:
        """Count a stack of tasks that another rank scores."""
        zeros = torch.zeros(count, dtype=torch.float64)
        for parts in (self.checksums, *self.per_learner.values()):
            parts.append(zeros)
        self.tasks += count

    def evaluations(self, episodes: object) -> dict[str, Evaluation]:
        """The results of all ranks together, by learner."""
        distributed.check_same({"tasks": self.tasks}, "Give every rank the same episodes")
        checksums = distributed.all_reduce(torch.cat(self.checksums)).tolist()
        measure = distributed.broadcast(self.measure)
        results = {}
        for name, learner in self.learners.items():
            per_episode = distributed.all_reduce(torch.cat(self.per_learner[name]))
            settings: Record = {"learner": learner.settings(), "episodes": describe(episodes)}
            if isinstance(episodes, Mixture):
                settings["task_sources"] = [episodes.source(task) for task in range(self.tasks)]
            results[name] = Evaluation(per_episode, measure, tuple(map(int, checksums)), settings)
        return results


def check_learner(learner: object) -> None:
    """Raise TypeError if `learner` is not a `Learner`."""
    if not isinstance(learner, Learner):
        check_unwrapped(learner)
        raise TypeError(
            f"the learner is a {type(learner).__name__}; give a Learner, such as MAML(model,"
            " lr=0.1)"
        )


def check_tasks(name: str, tasks: Any) -> None:
    """Raise an error if `tasks` cannot be loaded or scored.

    Args:
        name: what the tasks are called, for the message.
        tasks: the value to check.

    Raises:
        TypeError: these are not tasks.
        ValueError: there are none.
    """
    if isinstance(tasks, DataLoader | Episode):
        return
    indexed = hasattr(tasks, "__getitem__") and hasattr(tasks, "__len__")
    if not indexed or isinstance(tasks, str | Mapping | Tensor):
        raise TypeError(
            f"the {name} are a {type(tasks).__name__}, which has no tasks by index; give a FewShot,"
            " a list of Episodes, or any object with __len__ and __getitem__"
        )
    if len(tasks) == 0:
        raise ValueError(f"there are no {name}: the length is 0; ask for at least one task")


def first_task(tasks: Tasks | DataLoader[Episode] | Episode, device: torch.device) -> int | str:
    """A checksum of the first task, which ranks compare.

    For a `DataLoader` and for tasks that are drawn at random it is a word. The global random
    generators keep their states.

    Args:
        tasks: tasks by index, a `DataLoader`, or a stack.
        device: the learner's device.
    """
    if isinstance(tasks, DataLoader):
        return "of a DataLoader"
    if isinstance(tasks, Episode):
        tasks = unstack(tasks)
    states = random_state.generators(device)
    try:
        checksum = int(fingerprints(stack([tasks[0]])))
        again = int(fingerprints(stack([tasks[0]])))
    except Exception as error:  # the first step raises it again
        return f"{type(error).__name__}: {error}"
    finally:
        random_state.set_generators(states, device)
    return checksum if checksum == again else "random"


def _check_same(
    learners: Mapping[str, Learner], episodes: Tasks | DataLoader[Episode] | Episode, at_once: int
) -> None:
    """Raise ValueError if ranks differ in settings, tasks or weights.

    Their shares would not belong to one result.
    """
    if distributed.world_size() == 1:
        return
    learner_settings = {
        name: {**learner.settings(), "moving": list(learner.rates)}
        for name, learner in learners.items()
    }
    device = _like(next(iter(learners.values()))).device
    settings = {
        "call": "evaluate",
        "learners": learner_settings,
        "episodes": describe(episodes),
        "tasks_at_once": at_once,
        "first task": first_task(episodes, device),
    }
    # As JSON, because settings may hold values of any type, such as a loss function.
    plain = json.loads(json.dumps(settings, default=str))
    distributed.check_same(plain, "Start every rank with the same settings")
    for name, learner in learners.items():
        _check_same_weights(name, learner)


def _check_same_weights(name: str, learner: Learner) -> None:
    """Raise ValueError if ranks differ in the norms of a learner's parameters."""
    norms = [float(parameter.detach().double().norm()) for parameter in learner.parameters()]
    gathered = distributed.all_gather(norms)
    for rank, others in enumerate(gathered):
        same_number = len(others) == len(gathered[0])
        if not same_number or not all(map(_close, others, gathered[0])):
            raise ValueError(
                f"the weights of {name} differ between rank {rank} and rank 0; build every rank's"
                " from one seed or checkpoint"
            )


def to_device(episodes: Episode, learner: nn.Module) -> Episode:
    """Episodes on the learner's device, and with real inputs in its dtype."""
    like = _like(learner)
    # Token ids and masks keep their dtype.
    if all(tensor.is_floating_point() for tensor in tensors_of(episodes.support.inputs)):
        return episodes.to(like.device, like.dtype)
    return episodes.to(like.device)


def check_examples(episodes: Episode, *, stacked: bool = True) -> None:
    """Raise an error if a task has no queries, or not one target for each input.

    The learner checks the content of the support set.

    Args:
        episodes: a task, or a stack of tasks.
        stacked: whether it is a stack.

    Raises:
        ValueError: the task has no queries, or not one target for each input.
    """
    dims = int(stacked)
    for name, (inputs, targets) in zip(("support", "query"), episodes, strict=True):
        for tensor in tensors_of(inputs):
            has_examples = tensor.ndim > dims and targets.ndim > dims
            if not has_examples or tensor.shape[: dims + 1] != targets.shape[: dims + 1]:
                raise ValueError(
                    f"the {name} inputs of a task are {tuple(tensor.shape[dims:])} and its targets"
                    f" {tuple(targets.shape[dims:])}; give one target for each input, the examples"
                    " along the first dimension of both"
                )
        if targets.is_complex():
            raise ValueError(
                f"the {name} targets are {targets.dtype}; give integer labels or real values"
            )
    if not episodes.query.targets.shape[dims]:
        raise ValueError(
            "a task has no queries, so the query set is empty; give at least one example"
        )


def load(episodes: Tasks, indices: Sequence[int], learner: nn.Module) -> Episode:
    """A stack of tasks by index, on the learner's device and in its dtype."""
    if type(episodes) is FewShot:  # gathers the images of all tasks at once
        return to_device(episodes.stack(indices, _like(learner).device), learner)
    stacked = stack((episodes[i] for i in indices), pad=sizes_vary(episodes), indices=indices)
    check_examples(stacked)
    return to_device(stacked, learner)


def sizes_vary(episodes: Tasks) -> bool:
    """Whether tasks say that they differ in size, so that their stacks are padded."""
    return bool(getattr(episodes, "sizes_vary", False))


def accuracies(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of correct queries of each task; NaN for real targets.

    Args:
        logits: (tasks, queries, ways).
        targets: (tasks, queries); padded queries do not count.

    Returns:
        (tasks,) float64.
    """
    if targets.is_floating_point():
        return logits.new_full((len(logits),), math.nan, dtype=torch.float64)
    correct = (logits.argmax(-1) == targets).flatten(1).double()  # (tasks, queries)
    real = (~is_padding(targets)).flatten(1)
    return correct.sum(1) / real.sum(1)  # no prediction is the label of padding


def describe(episodes: object) -> Record:
    """A JSON-able record of episodes: their own `settings()`, or their type and number."""
    if isinstance(episodes, DataLoader):
        return {"loader": {"batch_size": episodes.batch_size}, **describe(episodes.dataset)}
    settings = getattr(episodes, "settings", None)
    if settings is not None:
        return dict(settings())
    return {"source": type(episodes).__name__, "tasks": _count(episodes)}


def _score(learner: Learner, episodes: Episode, first: int) -> Tensor:
    """The score of each task of a stack, (tasks,) float64.

    Args:
        learner: the learner.
        episodes: a stack of tasks.
        first: the number of the first task, for messages.
    """
    episodes = to_device(episodes, learner)
    targets = episodes.query.targets
    if targets.ndim > 1 and not targets.shape[1]:
        raise ValueError(f"task {first} has no queries to score; give every task at least one")
    if episodes.support.targets.ndim == 2:
        learner.check_stack(episodes.support.targets, first)
    logits = learner(episodes)  # (tasks, queries, ways)
    has_nan = logits.isnan().flatten(1).any(1)  # (tasks,)
    if has_nan.any():
        task = int(has_nan.nonzero()[0])
        raise FloatingPointError(
            f"the predictions for task {first + task} are NaN: {_why_nan(learner, episodes, task)}"
        )
    if targets.is_floating_point():
        network = learner.network
        losses = [learner.task_loss(network, *task) for task in zip(logits, targets, strict=True)]
        return torch.stack(losses).cpu().double()  # (tasks,)
    ways = logits.shape[-1]
    if int(targets.max()) >= ways:
        raise ValueError(
            f"a query has the label {int(targets.max())}, but there are {ways} ways: labels count"
            " from 0"
        )
    return accuracies(logits, targets).cpu()


def _why_nan(learner: Learner, episodes: Episode, task: int) -> str:
    """A possible reason for NaN in the predictions for one task of a stack, and the cure."""
    for side, examples in episodes._asdict().items():
        for kind, part in examples._asdict().items():
            if not all(tensor[task].isfinite().all() for tensor in tensors_of(part)):
                return f"its {side} {kind} hold values that are not finite; check the data"
    for name, parameter in learner.named_parameters():
        if not parameter.isfinite().all():
            return (
                f"the weights {name} hold values that are not finite; go back to an earlier"
                " checkpoint"
            )
    if learner.rates:
        return "a lower inner rate keeps adaptation finite"
    return "its features overflow; check the scale of the inputs and of the weights"


def _shared_out(
    episodes: Tasks | DataLoader[Episode] | Episode, at_once: int
) -> Iterator[tuple[int, Episode | None]]:
    """Stacks in order, as pairs of (number of tasks, stack or None if another rank takes it)."""
    rank = distributed.rank()
    ranks = distributed.world_size()
    if isinstance(episodes, DataLoader):
        if ranks > 1 and isinstance(episodes.sampler, RandomSampler):
            raise ValueError(
                "this DataLoader shuffles, so each rank would get other stacks; build it with"
                " shuffle=False"
            )
        for number, (support, query) in enumerate(_collated(episodes)):
            tasks = None
            if number % ranks == rank:
                tasks = Episode(Examples(*support), Examples(*query))
            yield len(query[1]), tasks
        return
    single = unstack(episodes) if isinstance(episodes, Episode) else episodes
    pad = isinstance(episodes, Episode) or sizes_vary(episodes)
    for number, start in enumerate(range(0, len(single), at_once)):
        indices = range(start, min(start + at_once, len(single)))
        tasks = None
        if number % ranks == rank:
            tasks = stack((single[i] for i in indices), pad=pad, indices=indices)
        yield len(indices), tasks


def _collated(loader: DataLoader[Episode]) -> Iterator[Episode]:
    """The loader's stacks; raises ValueError if the tasks of a stack differ in size."""
    try:
        yield from loader
    except RuntimeError as error:
        if "equal size" not in str(error):  # the message of torch's default_collate
            raise
        sizes = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"this DataLoader stacks tasks of unequal size ({sizes}); build it with batch_size=1,"
            " or with collate_fn=functools.partial(metalearn.episodes.stack, pad=True)"
        ) from error


def _count(episodes: Any) -> int:
    """The number of tasks; for a `DataLoader` at most."""
    if isinstance(episodes, DataLoader):
        return len(episodes) * (episodes.batch_size or 1)
    if isinstance(episodes, Episode):
        return len(episodes.query.targets)
    return len(episodes)


def fingerprints(episodes: Episode) -> Tensor:
    """A checksum of each task of a stack, (tasks,) float64; padding does not count."""
    if is_padded(episodes):
        return torch.cat([fingerprints(stack([task])) for task in unstack(episodes)])
    support, query = episodes
    # All targets and every 31st input value tell tasks apart, at a small share of the cost of all
    # values.
    tensors = [
        tensor.flatten(1)[:, ::31] for tensor in (*tensors_of(support[0]), *tensors_of(query[0]))
    ]
    tensors += [support[1], query[1]]
    checksums = [_checksum(task) for task in zip(*tensors, strict=True)]
    return torch.tensor(checksums, dtype=torch.float64)


def _checksum(tensors: Iterable[Tensor]) -> int:
    """The CRC-32 of the bytes of tensors, one after the other."""
    checksum = 0
    for tensor in tensors:
        values = tensor.cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
        checksum = zlib.crc32(values.view(torch.uint8).numpy().data, checksum)
    return checksum


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))


def _like(learner: nn.Module) -> Tensor:
    """A parameter with the learner's device and dtype."""
    real = (parameter for parameter in learner.parameters() if parameter.is_floating_point())
    return next(real, torch.empty(0))


def _interval_text(interval: float, measure: str) -> str:
    """The half-width of an interval, in points of accuracy or in loss."""
    return f"{100 * interval:.2f}" if measure == "accuracy" else f"{interval:.2g}"
