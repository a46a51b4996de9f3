"""Tasks learned one after another, with a file for each task that is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from metalearn.network.layers import head as find_head
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.tables import plain
from transfer.continual.checked_tasks import (
    Build,
    Train,
    built,
    check_together,
    check_width,
    seed_of,
    trainings_of,
)
from transfer.continual.memories import Finished, Memory, NextTask
from transfer.continual.stage_files import digest, file_name, read_stage, write_stage
from transfer.continual.task_sequence import Stage, TaskSequence, Weights, separate_heads
from transfer.finetuning.finetune import FineTuning
from transfer.initialisation.sources import copied
from transfer.initialisation.strategies import initialize

Advance: TypeAlias = Callable[..., None]
POINTS = 5  # of a course: how often all tasks so far are tested while one is learned


def learn_sequence(
    build: Build,
    tasks: Sequence[Any],
    train: Train,
    seed: int = 0,
    memory: Memory | None = None,
    *,
    heads: Literal["own", "shared"] = "own",
    head: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    points: int = POINTS,
    advance: Advance | None = None,
) -> TaskSequence:
    """Learn tasks one after another with one network.

    Task i starts from the network after task i - 1. With a head for each task it also gets a fresh
    head, and earlier tasks are tested with theirs. Everything is drawn from the seed. With a folder
    every finished task is a file, written whole or not at all: a sequence that was killed goes on
    with the task that was cut off, and ends with the same weights.

    Args:
        build: makes the network with one head, as wide as the classes of the largest task.
        tasks: each a `Split`, or a pair (train, test) of data sets; see `split_classes`, `shifted`.
        train: `train(train_set, test_set)` makes the training of a task, such as
            `partial(finetune, steps=3000, lr=0.01)`.
        seed: of the network and of all trainings.
        memory: what keeps earlier tasks: `ewc(...)`, `replay(...)`; None for nothing.
        heads: "own", a head for each task, or "shared", one for all (the same label space).
        head: the path of the head; by default the last Linear or Conv2d.
        folder: where finished tasks are kept; None keeps them in memory.
        points: how often the earlier tasks are tested while one is learned; 0 for never.
        advance: called as `advance(count, text)` while it trains, as `finetune` does.

    Returns:
        The sequence: accuracies, weights and heads after every task.

    Raises:
        ValueError: tasks of other image shapes, of one class, of other numbers of classes under a
            shared head; a head too narrow for a task; a memory that does not fit; a folder with
            another sequence.
        TypeError: `train` makes no `FineTuning`.

    Example:
        >>> from functools import partial
        >>> from transfer import finetune
        >>> from transfer.data import load, split_classes
        >>> tasks = split_classes(load("glyphs"), [range(3), range(3, 6)])
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> result = learn_sequence(build, tasks, partial(finetune, steps=10), seed=1)
        >>> len(result.weights), sorted(result.stages[1].heads[0])
        (2, ['3.bias', '3.weight'])
    """
    learner = Learner.of(build, tasks, train, heads=heads, head=head, points=points)
    return learner.learn(seed, memory, folder, advance)


@dataclass(frozen=True)
class Learner:
    """Tasks that are checked and ready to be learned, under any seed and with any memory.

    Attributes:
        build: makes the network.
        trainings: one for each task.
        shared: whether all tasks have one head.
        head: the path of the head.
        points: of a course.
    """

    build: Build
    trainings: tuple[FineTuning, ...]
    shared: bool
    head: str
    points: int

    @classmethod
    def of(
        cls,
        build: Build,
        tasks: Sequence[Any],
        train: Train,
        *,
        heads: str = "own",
        head: str | None = None,
        points: int = POINTS,
    ) -> Learner:
        """Check the tasks and the network before anything is trained."""
        if heads not in ("own", "shared"):
            raise ValueError(
                f"heads={heads!r}; choose 'own', a head for each task, or 'shared', one for all"
            )
        points = whole_number("points", points, least=0)
        if isinstance(build, nn.Module) or not callable(build):
            raise TypeError(f"build is a {type(build).__name__}; pass a function: build() -> model")
        trainings = trainings_of(tasks, train)
        shared = heads == "shared"
        check_together(trainings, shared=shared)
        model = built(build, 0)
        path = find_head(model, head)
        if not path and not shared:
            raise ValueError(
                f"the network is one {type(model).__name__}, all of it head: nothing would be kept"
                " from task to task; put layers before it, or pass heads='shared'"
            )
        check_width(model, trainings)
        return cls(build, trainings, shared, path, points)

    def learn(
        self,
        seed: int,
        memory: Memory | None = None,
        folder: str | os.PathLike[str] | None = None,
        advance: Advance | None = None,
        *,
        first: Stage | None = None,
    ) -> TaskSequence:
        """Learn all tasks, or go on with those that `folder` has not.

        Args:
            seed: of the network and of all trainings.
            memory: what keeps earlier tasks.
            folder: where finished tasks are kept.
            advance: called while it trains.
            first: the first task, if it is learned already: no memory changes it.
        """
        seed = whole_number("seed", seed, least=0)
        self.check_memory(memory)
        stages: list[Stage] = [] if first is None else [first]
        for task in range(len(stages), len(self.trainings)):
            stages.append(self.stage(stages, seed, memory if task else None, folder, advance))
        return TaskSequence(
            tuple(stages), self.head, self.shared, seed, "none" if memory is None else repr(memory)
        )

    def check_memory(self, memory: Memory | None) -> None:
        """Raise an error if a memory does not fit the network and the tasks."""
        if memory is None:
            return
        if not hasattr(memory, "prepare") or isinstance(memory, type):
            raise TypeError(f"memory={memory!r}; give ewc(100.0), replay(0.1) or None")
        memory.check(built(self.build, 0), self.trainings)

    def stage(
        self,
        before: Sequence[Stage],
        seed: int,
        memory: Memory | None = None,
        folder: str | os.PathLike[str] | None = None,
        advance: Advance | None = None,
        *,
        training: FineTuning | None = None,
        start: nn.Module | None = None,
        name: str | None = None,
    ) -> Stage:
        """Learn the next task, or read it.

        Args:
            before: the tasks so far.
            seed: of the sequence.
            memory: what keeps earlier tasks.
            folder: where finished tasks are kept.
            advance: called while it trains.
            training: in place of that of the next task, such as one with frozen layers.
            start: the network, in place of the one that starts the next task.
            name: of the file, for a stage that is no part of the sequence itself.
        """
        task = len(before)
        plan = training or self.trainings[task]
        model = self.start(before, seed) if start is None else start
        settings: Record = plain(
            {
                "train": plan.settings,
                "task": task,
                "seed": seed,
                "shared": self.shared,
                "memory": None if memory is None else repr(memory),
                "points": self.points,
                "start": digest(model.state_dict()),
            }
        )
        label = name or ("" if memory is None else file_name(repr(memory)))
        path = None
        if folder is not None:
            parts = [f"seed{seed}", label, f"task{task}"]
            path = Path(folder) / ("-".join(part for part in parts if part) + ".safetensors")
            stored = read_stage(path, settings)
            if stored is not None:
                if advance is not None:
                    advance(plan.steps, "read")
                return stored
        stage = self._learned(model, plan, before, seed, memory, advance)
        if path is not None:
            write_stage(path, stage, settings)
            # The same as a sequence that goes on would read.
            return read_stage(path, settings) or stage
        return stage

    def start(self, before: Sequence[Stage], seed: int) -> nn.Module:
        """The network as it starts the next task."""
        task = len(before)
        model = built(self.build, seed_of(seed, task))
        if before:
            sources = {"": copied(before[-1].weights)}
            if self.shared:
                sources[self.head] = copied(before[-1].weights)
            # A head that no path names stays fresh.
            initialize(model, sources, head=self.head)
        return model

    def network(self, weights: Weights) -> nn.Module:
        """A network with these weights, on the device of the training."""
        model = built(self.build, 0)
        source = copied(weights)
        initialize(model, {"": source, self.head: source}, head=self.head)
        return model.to(self.trainings[0].device)

    def correct(self, model: nn.Module, task: int) -> Tensor:
        """Which test images of a task a network gets right (test images,), as float64."""
        training = self.trainings[task]
        logits = training._logits(model, training.test_inputs, len(training.test_targets))
        return (logits.argmax(1) == training.test_targets).double()

    def accuracies(self, weights: Weights, heads: Sequence[Weights]) -> tuple[float, ...]:
        """The accuracy on every task, NaN for one without a head."""
        values = []
        for task in range(len(self.trainings)):
            if not self.shared and task >= len(heads):
                values.append(float("nan"))
                continue
            own = {} if self.shared else heads[task]
            values.append(float(self.correct(self.network({**weights, **own}), task).mean()))
        return tuple(values)

    def _learned(
        self,
        model: nn.Module,
        plan: FineTuning,
        before: Sequence[Stage],
        seed: int,
        memory: Memory | None,
        advance: Advance | None,
    ) -> Stage:
        task = len(before)
        earlier: tuple[Weights, ...] = before[-1].heads if before and not self.shared else ()
        training = plan
        if memory is not None and before:
            past = []
            for number, stage in enumerate(before):
                now = stage.heads[-1] if self.shared else earlier[number]
                known = self.trainings[number]
                past.append(Finished(known, stage.weights, now, seed_of(seed, number)))
            following = NextTask(model, plan, past, self.head, self.shared, seed_of(seed, task))
            training = memory.prepare(following)
        training = replace(training, keep=self._kept(training), folder=None)
        try:
            curve = training(model, seed_of(seed, task), advance)
        except FloatingPointError as error:
            kept = "" if memory is None else f", {memory}"
            cure = "" if memory is None else "; a strong memory needs a lower lr or less strength"
            raise FloatingPointError(f"task {task}, seed {seed}{kept}: {error}{cure}") from error
        course = {}
        for step, snapshot in curve.snapshots.items():
            assert isinstance(snapshot, Mapping)  # kept in memory, without a folder
            weights, heads = separate_heads(snapshot, self.head, earlier, shared=self.shared)
            course[step] = self.accuracies(weights, heads)[: task + 1]
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        weights, heads = separate_heads(state, self.head, earlier, shared=self.shared)
        accuracy = self.accuracies(weights, heads)
        return Stage(weights, heads, accuracy, replace(curve, snapshots={}), course)

    def _kept(self, training: FineTuning) -> tuple[int, ...]:
        """The steps of a course."""
        if not self.points:
            return ()
        steps = training.steps
        return tuple(sorted({round(steps * i / self.points) for i in range(self.points + 1)}))
