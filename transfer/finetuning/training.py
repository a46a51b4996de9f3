"""The training loop of a fine-tuning, the same for every initialisation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from metalearn.network.activations import explain
from metalearn.network.forward import Inputs, forward, map_tensors
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record, _checksum
from metalearn.training.penalty import Penalty, no_penalty
from transfer.finetuning.curve import Curve, Snapshot
from transfer.finetuning.data import named_tensors, order, rows_at, subset
from transfer.finetuning.rehearsal import Rehearsal, route
from transfer.finetuning.schedule import FreezeSchedule
from transfer.finetuning.scores import _counts, scores
from transfer.finetuning.snapshots import Snapshots
from transfer.finetuning.trainable import freeze, parameter_groups

# By name; any other is passed as a callable.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": lambda groups, lr: SGD(groups, lr=lr, momentum=0.9),
}
TESTED_AT_ONCE = 256  # test images in one forward pass
# Settings that are recorded as they are, and those that are recorded by name.
PLAIN_SETTINGS = (
    "steps",
    "batch",
    "lr",
    "evaluate_every",
    "metric",
    "images",
    "early_stop",
    "balance",
    "classes",
)
NAMED_SETTINGS = ("optimizer", "transform", "augment")
Transform: TypeAlias = Callable[[Any], Any]
Advance: TypeAlias = Callable[..., None]


@dataclass(frozen=True, eq=False, repr=False)
class FineTuning:
    """The result of `finetune`: `train(model, seed)` trains a model in place and returns its curve.

    With the same seed, every model sees the same images in the same order. The seed also governs
    dropout and augmentation. The model is left as after the last step or, if training stops early,
    as at its best validation score. Batch norm trains and tests as in torch.
    """

    train_inputs: Any  # Inputs: a tensor, or a tuple or dictionary of tensors
    train_targets: Tensor
    test_inputs: Any
    test_targets: Tensor
    validation: tuple[Any, Tensor] | None
    classes: int
    steps: int
    batch: int
    lr: float
    optimizer: str | Callable[..., Optimizer]
    evaluate_every: int
    metric: str
    images: int | float | None
    early_stop: int | None
    balance: str | None
    rates: Mapping[str, float] | None
    frozen: str | Mapping[str, int] | Callable[[nn.Module], Any] | None
    transform: Transform | None
    augment: Transform | None
    device: str
    output: str | None = None
    # Which label became which number, and classes without a training image.
    labels: Record = field(default_factory=dict)
    penalty: Penalty | None = None
    keep: tuple[int, ...] = ()
    folder: str | os.PathLike[str] | None = None
    rehearsal: Rehearsal | None = None

    def __repr__(self) -> str:
        return (
            f"FineTuning({self.steps} steps of {self.batch} of {len(self.train_targets)} images of"
            f" {self.classes} classes, {len(self.test_targets)} test images,"
            f" {_name(self.optimizer)}, lr {self.lr:g}, {self.metric})"
        )

    def __call__(self, model: nn.Module, seed: int, advance: Advance | None = None) -> Curve:
        """Train a model in place.

        Args:
            model: takes the images and returns a score for each class.
            seed: of the subset of images, their order, dropout and augmentation.
            advance: called as `advance(count, text)` at every evaluation.

        Returns:
            The test scores and losses along the way.

        Raises:
            TypeError: `model` is no module.
            ValueError: labels exceed the head's outputs.
            FloatingPointError: a loss or a prediction is not finite.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"train() got a {type(model).__name__} to train; it must be a torch.nn.Module"
            )
        seed = whole_number("seed", seed, least=0)
        device = torch.device(self.device)
        model.to(device)
        # Layers are frozen before the optimizer takes its parameters.
        schedule = None
        if isinstance(self.frozen, str):
            freeze(model, self.frozen)
        elif isinstance(self.frozen, Mapping):
            schedule = FreezeSchedule(model, self.frozen)
            schedule.hold(0)
        elif self.frozen:
            self.frozen(model)
        optimizer = self._optimizer(model)
        # Dropout and augmentation draw from torch's generators, which are left as they were.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._train(model, optimizer, schedule, seed, advance or _silent)

    @property
    def settings(self) -> Record:
        """Everything but the model and the seed that decides the result of a training."""
        settings: Record = {name: getattr(self, name) for name in PLAIN_SETTINGS}
        settings |= {name: _name(getattr(self, name)) for name in NAMED_SETTINGS}
        frozen: Any = self.frozen
        settings["frozen"] = dict(frozen) if isinstance(frozen, Mapping) else _name(frozen)
        if self.penalty is not None:
            settings["penalty"] = _name(self.penalty)
        if self.output is not None:
            settings["output"] = self.output
        if self.rehearsal is not None:
            settings["rehearsal"] = self.rehearsal.record()
        settings |= {"rates": dict(self.rates or {}), "data": self.checksums}
        return settings | self.labels

    @cached_property
    def checksums(self) -> dict[str, str]:
        """A checksum of the images and labels of each part."""
        parts = {
            "train": (self.train_inputs, self.train_targets),
            "test": (self.test_inputs, self.test_targets),
        }
        if self.validation:
            parts["validation"] = self.validation
        # Other images or labels are another training, even under the same name.
        checksums = {}
        for name, (inputs, targets) in parts.items():
            checksums[name] = _checksum({**named_tensors(inputs), "targets": targets}, "")[:16]
        return checksums

    def probe(self, count: int = 500) -> Any:
        """Test images to compare layers on, as the network sees them.

        Args:
            count: how many, from the start of an order that mixes classes.
        """
        count = whole_number("probe", count)
        # The same images for every model.
        generator = torch.Generator().manual_seed(0)
        index = torch.randperm(len(self.test_targets), generator=generator)[:count]
        return self._prepared(rows_at(self.test_inputs, index))

    def chosen(self, seed: int) -> Tensor:
        """Indices of the training images that this seed trains on (see `subset`)."""
        return subset(self.train_targets, self.images, seed)

    def _optimizer(self, model: nn.Module) -> Optimizer:
        # A rate of its own for each layer that `rates` names; "" is all the rest.
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameter_groups(model, {"": self.lr, **(self.rates or {})}), lr=self.lr)

    def _train(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: FreezeSchedule | None,
        seed: int,
        advance: Advance,
    ) -> Curve:
        # All training images of this seed are moved to the device at once.
        device = torch.device(self.device)
        index = self.chosen(seed)
        inputs = map_tensors(lambda tensor: tensor[index].to(device), self.train_inputs)
        targets = self.train_targets[index].to(device)
        weight = self._class_weights(targets)
        balanced = self.balance == "batches"
        batches = order(targets.cpu(), self.batch, seed, balanced=balanced)
        tasks = None
        if self.rehearsal is not None:
            inputs, targets, tasks, batches = self.rehearsal.joined(
                inputs, targets, self.batch, seed, balanced=balanced
            )
        history = _History(self, model, advance)
        history.evaluate(0)  # what the start scores before any training
        snapshots = Snapshots(self.keep, self.folder, seed)
        snapshots.take(0, model)
        model.train()
        if schedule is not None:
            schedule.hold(0)  # norms, which `train` has switched back
        step = 0
        started = time.perf_counter()
        # Between two evaluations losses stay on the device.
        with (self.penalty or no_penalty)(model) as extra:
            while step < self.steps and not history.stopped:
                losses: list[Tensor] = []
                penalties: list[Tensor] = []
                for _ in range(min(self.evaluate_every, self.steps - step)):
                    index = next(batches).to(device)
                    route(model, None if tasks is None else tasks[index])
                    batch = self._prepared(rows_at(inputs, index), training=True)
                    logits = forward(model, batch, self.output)
                    loss = F.cross_entropy(logits, targets[index], weight=weight)
                    losses.append(loss.detach())
                    if self.penalty is not None:
                        added = extra()
                        penalties.append(added.detach())
                        loss = loss + added
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    step += 1
                    snapshots.take(step, model)
                    if schedule is not None:
                        schedule.hold(step, optimizer)
                history.add_losses(step, losses, penalties)
                history.seconds += time.perf_counter() - started
                history.evaluate(step)
                started = time.perf_counter()
        return history.finish(snapshots.taken)

    def _class_weights(self, targets: Tensor) -> Tensor | None:
        """Weights n / (classes * images of the class), (classes,); None if the loss has none."""
        if self.balance != "loss":
            return None
        # (classes,); a class without images would be divided by zero.
        counts = torch.bincount(targets, minlength=self.classes).clamp(min=1)
        return len(targets) / (self.classes * counts.float())

    def _prepared(self, inputs: Inputs, *, training: bool = False) -> Inputs:
        """A batch as the network takes it: bytes become numbers in [0, 1]."""
        batch = inputs
        if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8:
            batch = inputs.float() / 255
        if training and self.augment:
            batch = self.augment(batch)
        return self.transform(batch) if self.transform else batch

    def _logits(self, model: nn.Module, inputs: Inputs, count: int) -> Tensor:
        """The logits of the first `count` examples, (count, classes), on the CPU."""
        device = torch.device(self.device)
        logits = []
        with evaluation_mode([model]), torch.no_grad():
            for index in torch.arange(count).split(TESTED_AT_ONCE):
                part = rows_at(inputs, index, device)
                logits.append(self._output(model, self._prepared(part)))
        return torch.cat(logits).float().cpu()

    def _output(self, model: nn.Module, inputs: Inputs) -> Tensor:
        try:
            return forward(model, inputs, self.output)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            # Raises an error that names the entries, if the output is a tuple or a dictionary.
            explain(error, model, lambda: forward(model, inputs, self.output))
            raise


class _History:
    """Scores and losses of one training, and the rule that stops it early."""

    def __init__(self, plan: FineTuning, model: nn.Module, advance: Advance) -> None:
        self.plan = plan
        self.model = model
        self.advance = advance
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.penalties: list[float] = []
        self.validation: list[float] = []
        self.predicted: list[dict[int, int]] = []
        self.seconds = 0.0
        self.best = 0  # the evaluation with the best validation score
        self.best_weights: dict[str, Tensor] = {}

    @property
    def stopped(self) -> bool:
        # Evaluations since the best one.
        patience = self.plan.early_stop
        return patience is not None and len(self.steps) - 1 - self.best >= patience

    def add_losses(self, step: int, losses: list[Tensor], penalties: list[Tensor]) -> None:
        """Add the losses and penalties of the steps up to `step`; raises if one is not finite."""
        # One transfer for all steps; it waits for the device, so its work counts in the seconds.
        values = torch.stack(losses).tolist()
        added = torch.stack(penalties).tolist() if penalties else []
        first = step - len(values) + 1
        for number, loss in enumerate(values):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {first + number}; a lower lr keeps it finite"
                )
            if added and not math.isfinite(added[number]):
                raise FloatingPointError(
                    f"the penalty is {added[number]} at step {first + number}; check its values,"
                    " or take a smaller strength"
                )
        self.losses += values
        self.penalties += added

    def evaluate(self, step: int) -> None:
        """Score the model on the test set, and on the validation set if there is one."""
        plan = self.plan
        advanced = step - self.steps[-1] if self.steps else 0
        logits = self._logits(plan.test_inputs, plan.test_targets)
        results = scores(logits, plan.test_targets, plan.classes)
        self.steps.append(step)
        self.predicted.append(_counts(logits.argmax(1)))
        for name, value in results.items():
            self.scores.setdefault(name, []).append(value)
        if plan.validation:
            self._validate(*plan.validation)
        if advanced:
            self.advance(advanced, f"{plan.metric} {results[plan.metric]:.3f}")

    def _validate(self, inputs: Inputs, targets: Tensor) -> None:
        plan = self.plan
        score = scores(self._logits(inputs, targets), targets, plan.classes)[plan.metric]
        best = max(self.validation, default=-math.inf)
        self.validation.append(score)
        if plan.early_stop is not None and score > best:
            self.best = len(self.steps) - 1
            self.best_weights = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }

    def finish(self, snapshots: Mapping[int, Snapshot]) -> Curve:
        """The curve; a model that stopped early goes back to its best weights."""
        plan = self.plan
        # Without early stopping the last evaluation counts.
        last = len(self.steps) - 1
        best = last if plan.early_stop is None else self.best
        if self.best_weights and best != last:
            self.model.load_state_dict(self.best_weights)
        # The progress bar ends full, though training stopped before.
        if self.steps[-1] < plan.steps:
            self.advance(plan.steps - self.steps[-1], "stopped early")
        return Curve(
            metric=plan.metric,
            steps=tuple(self.steps),
            scores={name: tuple(values) for name, values in self.scores.items()},
            losses=tuple(self.losses),
            seconds=round(self.seconds, 3),
            best=best,
            validation=tuple(self.validation),
            test_counts=_counts(plan.test_targets),
            predicted_counts=self.predicted[best],
            penalties=tuple(self.penalties),
            snapshots=snapshots,
        )

    def _logits(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's logits (examples, classes or more); raises if they cannot be scored."""
        logits = self.plan._logits(self.model, inputs, len(targets))
        # A test set of its own may have labels beyond those of training.
        classes = max(self.plan.classes, int(targets.max()) + 1)
        if logits.ndim != 2:
            raise ValueError(
                f"{type(self.model).__name__} puts out {tuple(logits.shape[1:])} for an image;"
                f" fine-tuning needs one number a class, ({classes},): add a pooling and a head, or"
                " name another entry with output="
            )
        if logits.shape[1] < classes:
            raise ValueError(
                f"labels run to {classes - 1}, but the head of {type(self.model).__name__} puts out"
                f" {tuple(logits.shape[1:])} for an image; build the model with outputs={classes}"
            )
        if not logits.isfinite().all():
            steps = self.steps[-1] if self.steps else 0
            raise FloatingPointError(
                f"the predictions after {steps} steps are not finite; try a lower lr"
            )
        return logits


def _silent(count: int = 1, text: str = "") -> None:
    """Show no progress."""


def _name(thing: Any) -> str | None:
    """A setting as it is recorded: a function by its module and name."""
    if thing is None or isinstance(thing, str):
        return thing
    if hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    return repr(thing)
