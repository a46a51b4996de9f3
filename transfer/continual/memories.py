"""What keeps earlier tasks while a later one is learned: EWC and replay."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.network.forward import Inputs
from metalearn.network.layers import is_inside
from metalearn.runtime.checks import whole_number
from metalearn.training.penalty import Penalty, together
from metalearn.training.regularisers import Strength, check_strength, pulled
from transfer.continual.fisher import LABELS, check_no_dropout, check_single_examples, fisher
from transfer.finetuning.data import rows_at, subset
from transfer.finetuning.finetune import FineTuning
from transfer.finetuning.rehearsal import Rehearsal, TaskHeads
from transfer.initialisation.sources import copied
from transfer.initialisation.strategies import initialize

Weights: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Finished:
    """A task that has been learned.

    Attributes:
        training: its images and settings.
        weights: the network after it, with the head of this task.
        head: the tensors of its head as they are now.
        seed: that it was trained with.
    """

    training: FineTuning
    weights: Weights
    head: Weights
    seed: int


@dataclass(frozen=True)
class NextTask:
    """The task that is about to be learned.

    Attributes:
        model: the network as it starts; a memory may change it.
        training: its images and settings.
        past: the tasks before, in order.
        head: the path of the network's head.
        shared: whether all tasks have one head.
        seed: of this training.
    """

    model: nn.Module
    training: FineTuning
    past: Sequence[Finished]
    head: str
    shared: bool
    seed: int


class Memory(Protocol):
    """Anything that changes how a later task is trained. Its repr is recorded with the result."""

    def check(self, model: nn.Module, trainings: Sequence[FineTuning]) -> None:
        """Raise ValueError, before any training, if it does not fit the network or the tasks."""

    def prepare(self, task: NextTask) -> FineTuning:
        """The training of the next task with this memory."""


@dataclass(frozen=True)
class ewc:
    """Elastic weight consolidation: parameters that earlier tasks need stay near their values.

    `L = L_task + sum_t (s/2) sum_i F_ti (w_i - w_ti)^2` with the Fisher information F_t of each
    earlier task at its end w_t; Kirkpatrick et al. 2017 (arXiv:1612.00796). With a head for each
    task the head is left out: the next task has another. A strength per layer asks which layers
    need to be held: `ewc({"": 0.0, "layer4": 100.0})`.

    Args:
        strength: `s`, a number or {module or parameter path: number}, the longest match winning.
        labels: of the Fisher information: "model", or "data" for the empirical one (see `fisher`).
        images: of each earlier task that it is measured on, training images drawn by the seed;
            None takes all.
        chunk: images whose gradients are in memory together; see `fisher`.

    Raises:
        ValueError: A strength that is not a finite number from 0; and when it is used, a network
            with batch norm or active dropout, or a path that reaches nothing.
    """

    strength: Strength = 100.0
    labels: str = "model"
    images: int | None = 1000
    chunk: int = 32

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r}; choose {' or '.join(LABELS)}")
        if self.images is not None:
            whole_number("images", self.images)
        whole_number("chunk", self.chunk)

    def check(self, model: nn.Module, trainings: Sequence[FineTuning]) -> None:
        """Raise ValueError if single examples have no gradient, or dropout is active."""
        check_single_examples(model)
        first = trainings[0]
        device = torch.device(first.device)
        model.to(device)
        rows = rows_at(first.train_inputs, torch.arange(min(2, len(first.train_targets))), device)
        check_no_dropout(model, _one_tensor(first._prepared(rows), "ewc"))
        # Entering it checks the paths and the strengths.
        with pulled(model, self.strength)(model):
            pass

    def prepare(self, task: NextTask) -> FineTuning:
        """The training with a penalty for every earlier task."""
        penalties: list[Penalty] = []
        for earlier in task.past:
            network = copy.deepcopy(task.model)
            initialize(network, {"": copied(earlier.weights), task.head: copied(earlier.weights)})
            importance = self._importance(network, earlier)
            if not task.shared:
                importance = {
                    name: value
                    for name, value in importance.items()
                    if not is_inside(name, task.head)
                }
            penalties.append(pulled(earlier.weights, self.strength, importance))
        return with_penalty(task.training, together(*penalties))

    def _importance(self, network: nn.Module, earlier: Finished) -> dict[str, Tensor]:
        training = earlier.training
        index = training.chosen(earlier.seed)
        if self.images is not None and self.images < len(index):
            index = index[subset(training.train_targets[index], self.images, earlier.seed)]
        device = torch.device(training.device)
        network.to(device)
        rows = rows_at(training.train_inputs, index, device)
        inputs = _one_tensor(training._prepared(rows), "ewc")
        targets = training.train_targets[index].to(device)
        return fisher(network, inputs, targets, labels=self.labels, chunk=self.chunk)


@dataclass(frozen=True)
class replay:
    """Replay: a share of every batch is of images of earlier tasks, each under its own task's head.

    The loss is the mean over the batch.

    Args:
        share: of every batch, from 0 to 1; rounded to whole images.
        store: how many images of earlier tasks there are to draw from, in all, each task and class
            with its share; None for all.

    Raises:
        ValueError: the share is outside 0 to 1, is less than half an image of a batch, or needs
            more images than the store holds.
    """

    share: float = 0.1
    store: int | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.share, Real) and not isinstance(self.share, bool)
        if not number or not 0 <= self.share <= 1:
            raise ValueError(
                f"share={self.share!r}; give the share of every batch that earlier tasks take, from"
                " 0 to 1"
            )
        if self.store is not None:
            whole_number("store", self.store)

    def check(self, model: nn.Module, trainings: Sequence[FineTuning]) -> None:
        """Raise ValueError if the share is no image, or the store is too small."""
        for number, training in enumerate(trainings[1:], start=1):
            if training.balance == "loss":
                raise ValueError(
                    "balance='loss' weights the classes of one task, and replay mixes tasks; use"
                    " balance='batches', or leave it out"
                )
            _one_tensor(training.train_inputs, "replay")
            count = self._count(training)
            sizes = [len(self._kept(earlier, number, 0)) for earlier in trainings[:number]]
            if count > sum(sizes):
                raise ValueError(
                    f"the store holds {sum(sizes)} images of earlier tasks, but a share of"
                    f" {self.share:g} of a batch of {training.batch} needs {count}; take a larger"
                    " store, or a smaller share"
                )

    def prepare(self, task: NextTask) -> FineTuning:
        """The training with images of earlier tasks; the network gets their heads, too."""
        count = self._count(task.training)
        if not count:
            return task.training
        inputs = []
        targets = []
        tasks = []
        for number, earlier in enumerate(task.past):
            training = earlier.training
            rows = self._kept(training, len(task.past), earlier.seed)
            inputs.append(training.train_inputs[rows])
            targets.append(training.train_targets[rows])
            tasks.append(torch.full_like(targets[-1], number))
        if not task.shared:
            install_heads(task.model, task.head, [earlier.head for earlier in task.past])
        rehearsal = Rehearsal(
            torch.cat(inputs), torch.cat(targets), torch.cat(tasks), len(task.past), count
        )
        return replace(task.training, rehearsal=rehearsal)

    def _count(self, training: FineTuning) -> int:
        """Images of earlier tasks in a batch."""
        count = round(self.share * training.batch)
        if self.share and not count:
            raise ValueError(
                f"a share of {self.share:g} of a batch of {training.batch} is no image; take a"
                f" share of at least {1 / training.batch:.2g}"
            )
        return count

    def _kept(self, training: FineTuning, tasks: int, seed: int) -> Tensor:
        """The training images of a task that the store holds."""
        index = training.chosen(seed)
        if self.store is None or self.store // tasks >= len(index):
            return index
        targets = training.train_targets[index]
        classes = len(targets.unique())
        if self.store // tasks < classes:
            raise ValueError(
                f"store={self.store} images of {tasks} earlier task(s) are less than one of each of"
                f" {classes} classes; take store={tasks * classes} or more"
            )
        return index[subset(targets, self.store // tasks, seed)]


def _one_tensor(inputs: Inputs, memory: str) -> Tensor:
    """The inputs, which must be one tensor. Raises TypeError for several."""
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"{memory} needs inputs of one tensor an image, and these are a"
            f" {type(inputs).__name__} of several"
        )
    return inputs


def with_penalty(training: FineTuning, penalty: Penalty) -> FineTuning:
    """A training with a penalty added to its own."""
    if training.penalty is not None:
        penalty = together(training.penalty, penalty)
    return replace(training, penalty=penalty)


def install_heads(model: nn.Module, head: str, earlier: Sequence[Weights]) -> None:
    """Give a network the heads of earlier tasks beside its own, in place.

    Args:
        model: the network.
        head: the path of its head.
        earlier: for each earlier task its head's tensors, by their names in the network.
    """
    current = model.get_submodule(head)
    heads = []
    for weights in earlier:
        other = copy.deepcopy(current)
        other.load_state_dict({name.removeprefix(f"{head}."): w for name, w in weights.items()})
        heads.append(other)
    path, _, name = head.rpartition(".")
    setattr(model.get_submodule(path), name, TaskHeads([*heads, current]))
