"""The training loop of a fine-tuning, the same for every initialisation."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from metalearn.network.activations import explain
from metalearn.network.forward import Inputs, forward, map_tensors
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import distributed
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record, _checksum
from metalearn.training.callbacks.calls import check_callbacks
from metalearn.training.penalty import Extra, Penalty, enter, no_penalty
from metalearn.training.stopping import NOT_SAVED, stop, stop_signals
from transfer.finetuning.curve import Curve
from transfer.finetuning.data import Batches, named_tensors, order, rows_at, subset
from transfer.finetuning.history import Advance, History
from transfer.finetuning.objectives import Classification, Objective
from transfer.finetuning.rehearsal import Rehearsal, route
from transfer.finetuning.schedule import FreezeSchedule
from transfer.finetuning.snapshots import Snapshots
from transfer.finetuning.state import (
    Checkpoint,
    Training,
    checkpoint,
    start_settings,
    without_addresses,
)
from transfer.finetuning.trainable import freeze, parameter_groups
from transfer.finetuning.watching import Watch

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
    decay: str | None = None
    objective: Objective = field(default_factory=Classification)
    rehearsal: Rehearsal | None = None
    callbacks: tuple[Any, ...] | Callable[[int], Any] = ()
    keep_best: bool = False

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
            ValueError: labels exceed the head's outputs, or `folder` holds the state of another
                training; the message names the settings that differ.
            FloatingPointError: a loss or a prediction is not finite.
            KeyboardInterrupt: after Ctrl-C, once the step is finished and its state written.
            SystemExit: with code 143 after SIGTERM, once the step is finished and its state
                written.
            Exception: what a callback raised, once the step is finished and its state written.
            BlockingIOError: another process trains in `folder` with the same seed.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"train() got a {type(model).__name__} to train; it must be a torch.nn.Module"
            )
        seed = whole_number("seed", seed, least=0)
        device = torch.device(self.device)
        model.to(device)
        # Layers are frozen before the optimizer takes its parameters.
        schedule = self._freeze(model)
        history = History(
            model,
            logits=partial(self._logits, model),
            test=(self.test_inputs, self.test_targets),
            validation=self.validation,
            classes=self.classes,
            objective=self.objective,
            metric=self.metric,
            steps=self.steps,
            early_stop=self.early_stop,
            keep_best=self.keep_best,
            advance=advance or _silent,
        )
        snapshots = Snapshots(self.keep, self.folder, seed)
        optimizer = self._optimizer(model)
        training = Training(model, optimizer, schedule, history, snapshots, device)
        # Dropout and augmentation draw from torch's generators, which are left as they were.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            # Under torchrun each rank has trainings of its own.
            with distributed.standalone():
                return self._train(training, seed)

    @property
    def settings(self) -> Record:
        """Everything but the model and the seed that decides the result of a training."""
        settings: Record = {name: getattr(self, name) for name in PLAIN_SETTINGS}
        settings |= {name: _name(getattr(self, name)) for name in NAMED_SETTINGS}
        frozen: Any = self.frozen
        settings["frozen"] = dict(frozen) if isinstance(frozen, Mapping) else _name(frozen)
        if self.penalty is not None:
            settings["penalty"] = _name(self.penalty)
        if not isinstance(self.objective, Classification):
            settings["loss"] = repr(self.objective)
        if self.output is not None:
            settings["output"] = self.output
        if self.decay is not None:
            settings["decay"] = self.decay
        if self.keep_best:
            settings["keep_best"] = True
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
        return subset(self.objective.labels(self.train_targets), self.images, seed)

    def first_loss(self, model: nn.Module, seed: int) -> Tensor:
        """The loss of the first batch of this seed, before any update and without the penalty.

        The model is in training mode then, its running statistics change, and layers are frozen.
        """
        device = torch.device(self.device)
        model.to(device).train()
        self._freeze(model)
        # Dropout and augmentation draw as at the first step.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            batches = self._batches(seed, skipped=0)
            inputs, targets, tasks = next(batches)
            route(model, tasks)
            logits = forward(model, self._prepared(inputs, training=True), self.output)
            return self.objective.loss(logits, targets, batches.weight)

    def _freeze(self, model: nn.Module) -> FreezeSchedule | None:
        """Freeze what is frozen from the start; returns the schedule of later steps, if any."""
        if isinstance(self.frozen, Mapping):
            schedule = FreezeSchedule(model, self.frozen)
            schedule.hold(0)
            return schedule
        if isinstance(self.frozen, str):
            freeze(model, self.frozen)
        elif self.frozen:
            self.frozen(model)
        return None

    def _optimizer(self, model: nn.Module) -> Optimizer:
        # A rate of its own for each layer that `rates` names; "" is all the rest.
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameter_groups(model, {"": self.lr, **(self.rates or {})}), lr=self.lr)

    def _train(self, training: Training, seed: int) -> Curve:
        model, history, schedule = training.model, training.history, training.schedule
        settings = self._state_settings(training, seed)
        with checkpoint(self.folder, seed, settings) as file, stop_signals() as received:
            state = file.load()
            if state is None:
                history.evaluate(0)  # what the start scores before any training
                training.snapshots.take(0, model)
            model.train()
            if schedule is not None:
                schedule.hold(0)  # norms, which `train` has switched back
            # A penalty is entered with the weights of the start, also if they are replaced then.
            with enter(self.penalty or no_penalty, model) as extra:
                if state is None:
                    file.save(training, extra)
                else:
                    training.load_state_dict(state, extra)
                watch = self._watch(training, seed, file.path, received)
                with watch.callbacks.running():
                    if state is None:
                        watch.callbacks.call("on_validation")
                    self._loop(training, seed, extra, file, watch)
            interrupted = received()
            if interrupted:
                saved = NOT_SAVED if file.path is None else f"{file.path} (step {history.updates})"
                stop(interrupted, history.updates, self.steps, saved, "Pass folder=")
            if history.updates > history.step:
                # Not in the file: the same call continues without this evaluation.
                history.evaluate(history.updates)
            return history.finish(training.snapshots.taken, watch.reason)

    def _watch(
        self,
        training: Training,
        seed: int,
        file: Path | None,
        received: Callable[[], signal.Signals | None],
    ) -> Watch:
        """What calls the callbacks of this training."""
        callbacks = self.callbacks
        if callable(callbacks):
            callbacks = check_callbacks(callbacks(seed))
        # Checksums of the data take time that a training without callbacks does not need.
        settings = {**self.settings, "seed": seed} if callbacks else {}
        return Watch(training, callbacks, settings, file, received)

    def _loop(
        self, training: Training, seed: int, extra: Extra, file: Checkpoint, watch: Watch
    ) -> None:
        """Train to the end, or until a callback or a signal stops it; save every evaluation."""
        history = training.history
        batches = self._batches(seed, skipped=history.updates)
        while not history.finished and not watch.stops:
            self._steps(training, batches, extra, watch)
            file.save(training, extra)
            watch.saved()

    def _steps(self, training: Training, batches: Batches, extra: Extra, watch: Watch) -> None:
        """Train up to the next evaluation, and evaluate; or until the training stops."""
        model, optimizer, history = training.model, training.optimizer, training.history
        started = time.perf_counter()
        # Between two evaluations losses stay on the device.
        losses: list[Tensor] = []
        penalties: list[Tensor] = []
        step = history.updates
        end = min(history.step + self.evaluate_every, self.steps)
        while step < end and not watch.stops:
            inputs, targets, tasks = next(batches)
            route(model, tasks)
            logits = forward(model, self._prepared(inputs, training=True), self.output)
            loss = self.objective.loss(logits, targets, batches.weight)
            losses.append(loss.detach())
            if self.penalty is not None:
                added = extra()
                penalties.append(added.detach())
                loss = loss + added
            optimizer.zero_grad()
            loss.backward()
            self._decay(training, step)
            optimizer.step()
            step += 1
            training.snapshots.take(step, model)
            if training.schedule is not None:
                training.schedule.hold(step, optimizer)
            if step < end:
                watch.stepped(step, losses[-1])
        history.add_losses(step, losses, penalties)
        history.seconds += time.perf_counter() - started
        if step == end:
            history.evaluate(step)
            watch.stepped(step, losses[-1])

    def _batches(self, seed: int, skipped: int) -> Batches:
        """The batches of this seed on the device, without the first ones."""
        device = torch.device(self.device)
        # All training images of this seed are moved to the device at once.
        index = self.chosen(seed)
        inputs = map_tensors(lambda tensor: tensor[index].to(device), self.train_inputs)
        targets = self.train_targets[index]
        labels = self.objective.labels(targets)
        balanced = self.balance == "batches"
        indices = order(labels, self.batch, seed, balanced=balanced)
        targets = targets.to(device)
        weight = self._class_weights(targets)
        tasks = None
        if self.rehearsal is not None:
            inputs, targets, tasks, indices = self.rehearsal.joined(
                inputs, targets, self.batch, seed, balanced=balanced
            )
        return Batches(inputs, targets, islice(indices, skipped, None), weight, tasks)

    def _state_settings(self, training: Training, seed: int) -> Record:
        """Everything that decides the result of a training; nothing if it is not saved."""
        if self.folder is None:
            return {}
        return {
            **self.settings,
            **start_settings(training.model, training.optimizer),
            "seed": seed,
            "device": torch.device(self.device).type,
            "keep": list(self.keep),
        }

    def _decay(self, training: Training, step: int) -> None:
        """Set the rates of the next step, after so many steps."""
        if self.decay is None:
            return  # an optimizer of the user's own may set its rates itself
        # Half a cosine, from 1 at the first step to almost 0 at the last.
        share = (1 + math.cos(math.pi * step / self.steps)) / 2
        for group, rate in zip(training.optimizer.param_groups, training.rates, strict=True):
            group["lr"] = rate * share

    def _class_weights(self, targets: Tensor) -> Tensor | None:
        """Weights n / (classes * images of the class), (classes,); None if the loss has none."""
        if self.balance != "loss":
            return None
        # (classes,); a class without images would be divided by zero.
        counts = torch.bincount(targets.flatten(), minlength=self.classes).clamp(min=1)
        return targets.numel() / (self.classes * counts.float())

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


def _silent(count: int = 1, text: str = "") -> None:
    """Show no progress."""


def _name(thing: Any) -> str | None:
    """A setting as it is recorded: a function by its module and name."""
    if thing is None or isinstance(thing, str):
        return thing
    if hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    return without_addresses(repr(thing))
