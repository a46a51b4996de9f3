"""How good a learner is on test episodes, with its interval; and two learners compared on the same
episodes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from metalearn.algorithms.base import Learner
from metalearn.algorithms.features import FeatureLearner
from metalearn.episodes import Episode, Examples, stack, unstack
from metalearn.network.forward import tensors_of
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import distributed, random_state
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.statistics import confidence_half_width, t_test
from metalearn.runtime.tables import Tabular
from metalearn.tasks.few_shot import FewShot


class Tasks(Protocol):
    """A number of single tasks by index, such as `FewShot`, `Sinusoid`, or a list of episodes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Episode: ...


@dataclass(frozen=True)
class Evaluation(Tabular):
    """What a learner reached on test tasks: the mean, the half-width of its 95 % interval, and
    every task's figure.

    `interval` is 1.96 std(ddof=1) / sqrt(tasks) (with fewer than 30 tasks Student's, see
    `half_width`), over tasks and not over seeds; NaN for a single task, which has no spread.
    `measure` is "accuracy" (0 to 1) for integer targets and "loss" (the learner's, per task) for
    real ones. `per_episode` is float64 `(tasks,)`. `fingerprints` identifies each task by a
    checksum of its data, so that `paired` can tell whether two learners saw the same ones.
    `settings` is a JSON-able record of the learner and the episodes.

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
        return float(self.per_episode.mean())

    @property
    def interval(self) -> float:
        return confidence_half_width(self.per_episode)

    @property
    def at_chance(self) -> bool:
        """Whether each of several tasks scores exactly 1 / ways, as predicting one class for every
        query does.
        """
        ways = self.settings.get("episodes", {}).get("ways")
        several = self.measure == "accuracy" and len(self.per_episode) > 1 and bool(ways)
        return several and bool((self.per_episode == 1 / ways).all())

    def __str__(self) -> str:
        tasks = len(self.per_episode)
        chance = (
            "; every task at exactly chance, as if one class is predicted for every query"
            if self.at_chance
            else ""
        )
        interval = (
            f"± {_figure(self.interval, self.measure)} (95 % interval over {tasks} tasks{chance})"
        )
        spread = interval if tasks > 1 else "(no interval: one task)"
        return (
            f"{self.mean:.2%} {spread}".replace("%", " %", 1)
            if self.measure == "accuracy"
            else f"loss {self.mean:.4g} {spread}"
        )

    def records(self) -> list[dict[str, Any]]:
        """A row for each task."""
        values = self.per_episode.tolist()
        return [{"task": task, self.measure: value} for task, value in enumerate(values)]

    def to_dict(self) -> Record:
        """A JSON-able record of all of it; the interval of a single task is None."""
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
    """How much better a was than b on the same tasks: the mean of a - b, its 95 % half-width, and
    the paired t test.

    `interval` is the half-width of the 95 % interval of the differences (see `half_width`); `p` is
    two-sided.
    """

    mean: float
    interval: float
    t: float
    p: float
    tasks: int
    measure: str = "accuracy"

    def __str__(self) -> str:
        mean = (
            f"{100 * self.mean:+.2f} points"
            if self.measure == "accuracy"
            else f"{self.mean:+.4g} loss"
        )
        spread = _figure(self.interval, self.measure)
        return (
            f"{mean} ± {spread} (95 % interval, paired over {self.tasks} tasks; t = {self.t:.2f}, p"
            f" = {self.p:.2g})"
        )


def paired(a: Evaluation, b: Evaluation) -> Paired:
    """Compare two learners on the same tasks: the mean of a - b with its interval, t and p.

    Raises ValueError where the two did not see the same tasks in the same order, differ in measure,
    or saw fewer than two tasks.

    Example:
        >>> a, b = (Evaluation(torch.tensor(x, dtype=torch.float64)) for x in ([0.9, 0.8, 1.0], [0.7, 0.7, 0.9]))
        >>> print(paired(a, b))
        +13.33 points ± 14.34 (95 % interval, paired over 3 tasks; t = 4.00, p = 0.057)
    """
    if a.measure != b.measure:
        raise ValueError(
            f"one evaluation holds {a.measure} and the other {b.measure}; compare two of one"
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
    different = [
        i for i, (x, y) in enumerate(zip(a.fingerprints, b.fingerprints, strict=True)) if x != y
    ]
    if different:
        raise ValueError(
            f"{len(different)} of {len(a.per_episode)} tasks differ between the two, the first"
            f" being task {different[0]}; evaluate both learners on the same episodes in the same"
            " order (one FewShot, or a DataLoader without shuffle)"
        )
    difference = a.per_episode - b.per_episode
    mean = float(difference.mean())
    t, p = t_test(difference.numpy())
    if math.isnan(p):  # every task differs by the same, so there is no spread
        t, p = math.copysign(math.inf, mean), 0.0
    return Paired(mean, confidence_half_width(difference), t, p, len(difference), a.measure)


def evaluate(
    learner: Learner,
    episodes: Tasks | DataLoader[Episode] | Episode,
    *,
    progress: bool = False,
    tasks_at_once: int = 16,
) -> Evaluation:
    """Adapt to each task and score its queries -> `Evaluation`.

    Dropout is off meanwhile and no gradient reaches the learner. Where torchrun started several
    ranks, all of them must call this: each takes its share of the tasks, and all return the same as
    one process would.

    Args:
        learner: any `Learner`; episodes are moved to its device and dtype.
        episodes: tasks by index (`FewShot`), a `DataLoader` of stacks, or one stack.
        progress: show rate and time left.
        tasks_at_once: tasks in one call of the learner, for tasks by index or one stack; more take
            more memory and change no result.

    Raises ValueError where there are no tasks, and FloatingPointError naming the task where a
    prediction is NaN.
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
    """`evaluate` for several learners by name, each task drawn once for all of them; any two can
    then be compared by `paired`.
    """
    for learner in learners.values():
        check_learner(learner)
    scores: dict[str, list[Tensor]] = {name: [] for name in learners}
    marks, measure, seen = [], "accuracy", 0
    distributed.join(_like(next(iter(learners.values()), nn.Module())).device)
    with distributed.failing_together():
        tasks_at_once = whole_number("tasks_at_once", tasks_at_once)
        check_tasks("test tasks", episodes)
    _check_same(learners, episodes, tasks_at_once)
    with (
        distributed.failing_together(),
        torch.no_grad(),
        evaluation_mode(learners.values()),
        shown_progress(
            "evaluating",
            _count(episodes, tasks_at_once),
            unit="task",
            shown=progress and distributed.rank() == 0,
        ) as advance,
    ):
        for count, tasks in _shared_out(episodes, tasks_at_once):
            if tasks is not None:
                check_examples(tasks)
                measure = "loss" if tasks.query.targets.is_floating_point() else "accuracy"
            marks.append(
                torch.zeros(count, dtype=torch.float64) if tasks is None else fingerprints(tasks)
            )
            for name, learner in learners.items():
                scores[name].append(
                    torch.zeros(count, dtype=torch.float64)
                    if tasks is None
                    else _score(learner, tasks, seen)
                )
            seen += count
            advance(count)
        if not seen:
            raise ValueError("there are no episodes to evaluate on; ask for at least one task")
    distributed.check_same({"tasks": seen}, "Give every rank the same episodes")
    checksums = tuple(int(mark) for mark in distributed.all_reduce(torch.cat(marks)).tolist())
    measure = distributed.broadcast(measure)
    return {
        name: Evaluation(
            distributed.all_reduce(torch.cat(scores[name])),
            measure,
            checksums,
            {"learner": learner.settings(), "episodes": describe(episodes)},
        )
        for name, learner in learners.items()
    }


def check_learner(learner: object) -> None:
    """Raise TypeError if `learner` is no `Learner`."""
    if not isinstance(learner, Learner):
        raise TypeError(
            f"the learner is a {type(learner).__name__}; give a Learner, such as MAML(model,"
            " lr=0.1)"
        )


def check_tasks(name: str, tasks: object) -> None:
    """Raise TypeError if `tasks` are no tasks that can be drawn or scored, and ValueError if there
    are none.
    """
    if isinstance(tasks, DataLoader | Episode):
        return
    if isinstance(tasks, str | Mapping | Tensor) or not (
        hasattr(tasks, "__getitem__") and hasattr(tasks, "__len__")
    ):
        raise TypeError(
            f"the {name} are a {type(tasks).__name__}, which has no tasks by index; give a FewShot,"
            " a list of Episodes, or any object with __len__ and __getitem__"
        )
    if len(tasks) == 0:
        raise ValueError(f"there are no {name}: the length is 0; ask for at least one task")


def first_task(tasks: Tasks | DataLoader[Episode] | Episode, device: torch.device) -> int | str:
    """A checksum of the first task, to be compared between ranks; for random tasks and a
    `DataLoader` only what they are.

    The global random generators are left as they were.
    """
    if isinstance(tasks, DataLoader):
        return "of a DataLoader"
    listed = unstack(tasks) if isinstance(tasks, Episode) else tasks
    states = random_state.generators(device)
    try:
        marks = [int(fingerprints(stack([listed[0]]))) for _ in range(2)]
    except Exception as error:  # the first step raises it
        return f"{type(error).__name__}: {error}"
    finally:
        random_state.set_generators(states, device)
    return marks[0] if marks[0] == marks[1] else "random"


def _check_same(
    learners: Mapping[str, Learner], episodes: Tasks | DataLoader[Episode] | Episode, at_once: int
) -> None:
    """Raise ValueError if ranks differ in settings, tasks or weights: their shares would not be of
    one result.
    """
    if distributed.world_size() == 1:
        return
    device = _like(next(iter(learners.values()))).device
    asked = {
        name: {**learner.settings(), "moving": list(learner.rates)}
        for name, learner in learners.items()
    }
    work = {
        "call": "evaluate",
        "learners": asked,
        "episodes": describe(episodes),
        "tasks_at_once": at_once,
        "first task": first_task(episodes, device),
    }
    distributed.check_same(
        json.loads(json.dumps(work, default=str)), "Start every rank with the same settings"
    )
    sizes = {
        name: [float(p.detach().double().norm()) for p in learner.parameters()]
        for name, learner in learners.items()
    }
    gathered = distributed.all_gather(sizes)
    for rank, norms in enumerate(gathered):
        for name in learners:
            if len(norms[name]) != len(gathered[0][name]) or not all(
                map(_close, norms[name], gathered[0][name])
            ):
                raise ValueError(
                    f"the weights of {name} differ between rank {rank} and rank 0; build every"
                    " rank's from one seed or checkpoint"
                )


def to_device(episodes: Episode, learner: nn.Module) -> Episode:
    """Episodes on the learner's device and, where their inputs are real numbers, in its dtype."""
    like = _like(learner)
    real = all(tensor.is_floating_point() for tensor in tensors_of(episodes.support.inputs))
    return episodes.to(like.device, like.dtype) if real else episodes.to(like.device)


def check_examples(episodes: Episode, *, stacked: bool = True) -> None:
    """Raise ValueError if a task, or a stack of them, has no queries, or not one target for each
    input.

    The support set is the learner's to check.
    """
    dims = int(stacked)
    for name, (inputs, targets) in zip(("support", "query"), episodes, strict=True):
        for tensor in tensors_of(inputs):
            if (
                tensor.ndim <= dims
                or targets.ndim <= dims
                or tensor.shape[: dims + 1] != targets.shape[: dims + 1]
            ):
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
    if type(episodes) is FewShot:
        return to_device(episodes.stack(indices, _like(learner).device), learner)
    stacked = stack((episodes[i] for i in indices), indices=indices)
    check_examples(stacked)
    return to_device(stacked, learner)


def accuracies(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of queries that are right, `(tasks,)` float64, from logits `(tasks, queries,
    ways)`; NaN for real targets.
    """
    if targets.is_floating_point():
        return logits.new_full((len(logits),), math.nan, dtype=torch.float64)
    return (logits.argmax(-1) == targets).flatten(1).double().mean(1)


def describe(episodes: object) -> Record:
    """A JSON-able record of where episodes come from: their own `settings()`, or else their type
    and length.
    """
    if isinstance(episodes, DataLoader):
        return {"loader": {"batch_size": episodes.batch_size}, **describe(episodes.dataset)}
    own = getattr(episodes, "settings", None)
    if own is not None:
        return dict(own())
    tasks = len(episodes.query.targets) if isinstance(episodes, Episode) else len(episodes)  # type: ignore[arg-type]
    return {"source": type(episodes).__name__, "tasks": tasks}


def _score(learner: Learner, episodes: Episode, first: int) -> Tensor:
    placed = to_device(episodes, learner)
    targets = placed.query.targets
    if targets.ndim > 1 and not targets.shape[1]:
        raise ValueError(f"task {first} has no queries to score; give every task at least one")
    if isinstance(learner, FeatureLearner) and placed.support.targets.ndim == 2:
        learner.check_stack(placed.support.targets, first)
    logits = learner(placed)
    broken = logits.isnan().flatten(1).any(1).nonzero()
    if len(broken):
        task = int(broken[0])
        raise FloatingPointError(
            f"the predictions for task {first + task} are NaN: {_why_nan(learner, placed, task)}"
        )
    if not targets.is_floating_point() and int(targets.max()) >= logits.shape[-1]:
        raise ValueError(
            f"a query has the label {int(targets.max())}, but there are {logits.shape[-1]} ways:"
            " labels count from 0"
        )
    if targets.is_floating_point():
        network = learner.network
        losses = [learner.task_loss(network, *task) for task in zip(logits, targets, strict=True)]
        return torch.stack(losses).cpu().double()
    return accuracies(logits, targets).cpu()


def _why_nan(learner: Learner, episodes: Episode, task: int) -> str:
    """What may have made the predictions for the `task`-th of these episodes NaN, and the cure."""
    for side, examples in episodes._asdict().items():
        for kind, tensor in examples._asdict().items():
            if not tensor[task].isfinite().all():
                return f"its {side} {kind} hold values that are not finite; look at the data"
    weights = [
        name for name, parameter in learner.named_parameters() if not parameter.isfinite().all()
    ]
    if weights:
        return (
            f"the weights {weights[0]} hold values that are not finite; go back to an earlier"
            " checkpoint"
        )
    if learner.rates:
        return "a lower inner rate keeps adaptation finite"
    return "its features overflow; look at the scale of the inputs and of the weights"


def _shared_out(
    episodes: Tasks | DataLoader[Episode] | Episode, at_once: int
) -> Iterator[tuple[int, Episode | None]]:
    """(tasks, their stack) in order; None in place of a stack that another rank takes."""
    rank, count = distributed.rank(), distributed.world_size()
    if isinstance(episodes, DataLoader):
        if count > 1 and isinstance(episodes.sampler, RandomSampler):
            raise ValueError(
                "this DataLoader shuffles, so that every rank would share out other stacks; build"
                " it with shuffle=False"
            )
        for number, (support, query) in enumerate(_collated(episodes)):
            yield (
                len(query[0]),
                (Episode(Examples(*support), Examples(*query)) if number % count == rank else None),
            )
        return
    tasks = unstack(episodes) if isinstance(episodes, Episode) else episodes
    for number, start in enumerate(range(0, len(tasks), at_once)):
        chosen = range(start, min(start + at_once, len(tasks)))
        yield (
            len(chosen),
            (stack((tasks[i] for i in chosen), indices=chosen) if number % count == rank else None),
        )


def _collated(loader: DataLoader[Episode]) -> Iterator[Episode]:
    """The loader's stacks. Raises ValueError if a stack's tasks differ in size."""
    try:
        yield from loader
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        sizes = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"this DataLoader stacks tasks of unequal size ({sizes}); build it with batch_size=1"
        ) from error


def _count(episodes: Tasks | DataLoader[Episode] | Episode, at_once: int) -> int:
    if isinstance(episodes, DataLoader):
        return len(episodes) * (episodes.batch_size or 1)
    return len(episodes.query.targets) if isinstance(episodes, Episode) else len(episodes)


def fingerprints(episodes: Episode) -> Tensor:
    """A checksum of each task of a stack, `(tasks,)` float64."""

    # All targets and every 31st input value: enough to tell drawn tasks apart, at a small share of
    # the cost of a whole checksum.
    def mark(*tensors: Tensor) -> int:
        return zlib.crc32(
            b"".join(
                tensor.cpu()
                .clone(memory_format=torch.contiguous_format)
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
                for tensor in tensors
            )
        )

    (support, labels), (query, answers) = episodes
    inputs = [tensor.flatten(1)[:, ::31] for tensor in (*tensors_of(support), *tensors_of(query))]
    parts = zip(*inputs, labels, answers, strict=True)
    return torch.tensor([mark(*task) for task in parts], dtype=torch.float64)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))


def _like(learner: nn.Module) -> Tensor:
    return next((p for p in learner.parameters() if p.is_floating_point()), torch.empty(0))


def _figure(interval: float, measure: str) -> str:
    return f"{100 * interval:.2f}" if measure == "accuracy" else f"{interval:.2g}"
