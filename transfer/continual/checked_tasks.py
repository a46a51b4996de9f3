"""Tasks and a network that fit each other, checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from metalearn.runtime.checks import sequence
from transfer.finetuning.data import named_tensors, rows_at
from transfer.finetuning.finetune import FineTuning
from transfer.finetuning.objectives import Classification

Build: TypeAlias = Callable[[], nn.Module]
Train: TypeAlias = Callable[[Any, Any], FineTuning]


def built(build: Build, seed: int) -> nn.Module:
    """The network with the weights that the seed draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build() returned a {type(model).__name__}; it must return a module")
    return model


def seed_of(seed: int, task: int) -> int:
    """The seed of one task; that of the first is the sequence's own.

    Example:
        >>> seed_of(3, 0), seed_of(3, 1) == seed_of(4, 1)
        (3, False)
    """
    if not task:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} task {task}".encode()).digest()[:6])


def trainings_of(tasks: Sequence[Any], train: Train) -> tuple[FineTuning, ...]:
    """The training of every task; errors name the task."""
    given = sequence("tasks", tasks, "split_classes(images, [range(5), range(5, 10)])")
    if len(given) < 2:
        raise ValueError(f"there is {len(given)} task; a sequence needs two or more")
    trainings = []
    for number, task in enumerate(given):
        try:
            train_set, test_set = task[0], task[-1]
            training = train(train_set, test_set)
        except (ValueError, TypeError) as error:
            raise type(error)(f"task {number}: {error}") from error
        if not isinstance(training, FineTuning):
            raise TypeError(
                f"train() made a {type(training).__name__}; give a function of (train set, test"
                " set) that makes a FineTuning, such as partial(finetune, steps=3000)"
            )
        single = training.train_targets.ndim == 1
        if not (single and isinstance(training.objective, Classification)):
            raise ValueError(
                f"task {number}: tasks of a sequence are scored by accuracy, with one integer label"
                " an image; leave out loss=, and give data sets of (image, label)"
            )
        trainings.append(training)
    return tuple(trainings)


def check_together(trainings: Sequence[FineTuning], *, shared: bool) -> None:
    """Raise ValueError if tasks have other shapes of images, or cannot share a head."""
    first = trainings[0]
    for number, training in enumerate(trainings[1:], start=1):
        pairs = zip(
            named_tensors(first.train_inputs).values(),
            named_tensors(training.train_inputs).values(),
            strict=False,
        )
        for one, other in pairs:
            if one.shape[1:] != other.shape[1:]:
                raise ValueError(
                    f"images of task {number} are {tuple(other.shape[1:])} and those of task 0"
                    f" {tuple(one.shape[1:])}; bring all to one shape, for example with load(size=,"
                    " channels=)"
                )
        if shared and training.classes != first.classes:
            raise ValueError(
                f"task {number} has {training.classes} classes and task 0 {first.classes}: one"
                " shared head needs the same labels in all tasks; use heads='own'"
            )


def check_width(model: nn.Module, trainings: Sequence[FineTuning]) -> None:
    """Raise ValueError if the network does not take the images or has too few outputs."""
    device = trainings[0].device
    model.to(device)
    for number, training in enumerate(trainings):
        inputs = rows_at(training.test_inputs, torch.arange(min(2, len(training.test_targets))))
        logits = training._logits(model, inputs, len(next(iter(named_tensors(inputs).values()))))
        if logits.ndim != 2 or logits.shape[1] < training.classes:
            raise ValueError(
                f"task {number} has {training.classes} classes, and build() makes a network that"
                f" outputs {tuple(logits.shape[1:])}; build it for the largest task, with"
                f" {max(t.classes for t in trainings)} outputs"
            )
