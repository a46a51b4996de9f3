"""Training a network on a set of images, with its test scores along the way: what every start is
put through alike.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from metalearn.data.images import LabelledImages, in_memory_together
from metalearn.network.activations import explain
from metalearn.network.forward import Inputs, forward, map_tensors
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record, _checksum
from transfer.finetuning.curve import Curve
from transfer.finetuning.scores import _counts, scores

from .trainable import freeze, parameter_groups

log = logging.getLogger("metalearn")
METRICS = ("accuracy", "balanced_accuracy", "auc")
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": lambda groups, lr: SGD(groups, lr=lr, momentum=0.9),
}
TESTED_AT_ONCE = 256
Transform: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, eq=False, repr=False)
class FineTuning:
    """What `finetune` returns: `train(model, seed)` trains the model in place and returns its
    `Curve`.

    Every model sees the same images in the same order under one seed, which also governs dropout
    and augmentation. The model is left as after the last step, or as it was at its best validation
    score where it stops early; batch norm trains and tests as torch has it.
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
    frozen: str | Callable[[nn.Module], Any] | None
    transform: Transform | None
    augment: Transform | None
    device: str
    output: str | None = None
    labels: Record = field(
        default_factory=dict
    )  # which label became which number, and classes without a training image

    def __repr__(self) -> str:
        return (
            f"FineTuning({self.steps} steps of {self.batch} of {len(self.train_targets)} images of"
            f" {self.classes} classes, {len(self.test_targets)} test images,"
            f" {_name(self.optimizer)}, lr {self.lr:g}, {self.metric})"
        )

    def __call__(
        self, model: nn.Module, seed: int, advance: Callable[..., None] | None = None
    ) -> Curve:
        """Train `model` in place -> its `Curve`; `advance(count, text)` is called at every
        evaluation.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"train() got a {type(model).__name__} to train; it must be a torch.nn.Module"
            )
        seed = whole_number("seed", seed, least=0)
        device = torch.device(self.device)
        model.to(device)
        if isinstance(self.frozen, str):
            freeze(model, self.frozen)
        elif self.frozen:
            self.frozen(model)
        optimizer = self._optimizer(model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._train(
                model,
                optimizer,
                self.chosen(seed),
                seed,
                device,
                advance or (lambda count=1, text="": None),
            )

    @property
    def settings(self) -> Record:
        """What decides the result of a training but for the model and the seed, with checksums of
        the images.
        """
        plain = (
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
        named = {
            name: _name(getattr(self, name))
            for name in ("optimizer", "frozen", "transform", "augment")
        }
        output = {} if self.output is None else {"output": self.output}
        plainly = {name: getattr(self, name) for name in plain}
        return {
            **plainly,
            **named,
            **output,
            "rates": dict(self.rates or {}),
            "data": self.checksums,
            **self.labels,
        }

    @cached_property
    def checksums(self) -> dict[str, str]:
        """A checksum of the images and labels of each part."""
        parts = {
            "train": (self.train_inputs, self.train_targets),
            "test": (self.test_inputs, self.test_targets),
        }
        if self.validation:
            parts["validation"] = self.validation
        checksums = {}
        for name, (inputs, targets) in parts.items():
            checksums[name] = _checksum({**named_tensors(inputs), "targets": targets}, "")[:16]
        return checksums

    def probe(self, count: int = 500) -> Any:
        """The first `count` of the test images in an order that mixes classes, as the network sees
        them: inputs to compare layers on.
        """
        count = whole_number("probe", count)
        order = torch.randperm(len(self.test_targets), generator=torch.Generator().manual_seed(0))[
            :count
        ]
        return self._prepared(map_tensors(lambda tensor: tensor[order], self.test_inputs))

    def chosen(self, seed: int) -> Tensor:
        """Which training images this seed trains on: all, or `images` of them, each class with its
        share (and one image at least).
        """
        return subset(self.train_targets, self.images, seed)

    def _optimizer(self, model: nn.Module) -> Optimizer:
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return make(parameter_groups(model, {"": self.lr, **(self.rates or {})}), lr=self.lr)

    def _train(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        chosen: Tensor,
        seed: int,
        device: torch.device,
        advance: Callable[..., None],
    ) -> Curve:
        inputs = map_tensors(lambda tensor: tensor[chosen].to(device), self.train_inputs)
        targets = self.train_targets[chosen].to(device)
        counts = torch.bincount(targets, minlength=self.classes).clamp(min=1)
        weight = len(targets) / (self.classes * counts.float()) if self.balance == "loss" else None
        batches = order(targets.cpu(), self.batch, seed, balanced=self.balance == "batches")
        log = _Log(self, model, advance)
        log.evaluate(0)
        model.train()
        step = 0
        started = time.perf_counter()
        while step < self.steps and not log.stopped:
            losses: list[Tensor] = []
            span = min(self.evaluate_every, self.steps - step)
            for _ in range(span):
                index = next(batches).to(device)
                batch = self._prepared(_rows(inputs, index), training=True)
                logits = forward(model, batch, self.output)
                loss = F.cross_entropy(logits, targets[index], weight=weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            step += span
            log.trained(step, torch.stack(losses), time.perf_counter() - started)
            log.evaluate(step)
            started = time.perf_counter()
        return log.finish()

    def _prepared(self, inputs: Inputs, *, training: bool = False) -> Inputs:
        batch = (
            inputs.float() / 255
            if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
            else inputs
        )
        if training and self.augment:
            batch = self.augment(batch)
        return self.transform(batch) if self.transform else batch

    def _logits(self, model: nn.Module, inputs: Inputs, count: int) -> Tensor:
        device = torch.device(self.device)
        logits = []
        with evaluation_mode([model]), torch.no_grad():
            for index in torch.arange(count).split(TESTED_AT_ONCE):
                part = _rows(inputs, index, device)
                logits.append(self._output(model, self._prepared(part)))
        return torch.cat(logits).float().cpu()

    def _output(self, model: nn.Module, inputs: Inputs) -> Tensor:
        try:
            return forward(model, inputs, self.output)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            explain(error, model, lambda: forward(model, inputs, self.output))
            raise


def finetune(
    train_set: Any,
    test_set: Any,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 1e-3,
    optimizer: str | Callable[..., Optimizer] = "adam",
    evaluate_every: int | None = None,
    metric: str = "accuracy",
    images: int | float | None = None,
    validation: Any = None,
    early_stop: int | None = None,
    balance: str | None = None,
    rates: Mapping[str, float] | None = None,
    frozen: str | Callable[[nn.Module], Any] | None = None,
    transform: Transform | None = None,
    augment: Transform | None = None,
    device: str = "cpu",
    output: str | None = None,
) -> FineTuning:
    """A function `train(model, seed)` that trains a model with cross-entropy and returns its
    `Curve`.

    Args:
        train_set, test_set: any data set of (image, integer label), held in memory;
            `metalearn.tasks.LabelledImages`, `metalearn.data.labelled_sets.load`. For models of
            several inputs see below.
        steps: updates of the weights.
        batch: images an update. The last images of an epoch that do not fill a batch wait for the
            next epoch's shuffle.
        lr: the rate of what `rates` does not name.
        optimizer: "adam", "adamw", "sgd" (momentum 0.9), or a callable of (parameter groups, lr=).
        evaluate_every: steps between tests; a twentieth of `steps` by default.
        metric: "accuracy", "balanced_accuracy" (the mean over classes of the share found) or "auc"
            (see `auc`). All are recorded.
        images: how many of the training images, a number or (a float up to 1) a fraction; each
            class keeps its share, drawn by the seed.
        validation: a data set to stop by.
        early_stop: stop after so many evaluations without a better validation score, and go back to
            the best.
        balance: for classes of different size: "loss" weighs each image by `n / (classes * images
            of its class)`, "batches" draws each class as often as any other, None does nothing.
        rates: {module or parameter path: rate}, the longest match winning.
        frozen: the layer up to which nothing trains (see `freeze`), or what holds layers of a
            model: `linear_probe`, `frozen_transformer`.
        transform: what a batch of images (examples, channels, height, width) in [0, 1] goes
            through, such as `v2.Normalize(mean, std)`.
        augment: the same before `transform`, in training alone.
        device: where to train.
        output: which entry of the model's output holds the logits, if that is a tuple, a dictionary
            or a `ModelOutput`: "logits", "out", "0". Losses of auxiliary entries are not added.
            GoogLeNet and Inception have entries in training mode alone.

    A model of several inputs is given data of (tuple of tensors, label), called as
    `model(*tensors)`, or (dictionary of tensors, label), called as `model(**tensors)`. Their
    tensors keep their dtype, and `transform` and `augment` get the whole tuple or dictionary.

    Raises ValueError naming what does not fit: one class, a class that the test has and training
    has not, fewer images than classes, an AUC that the test set does not define; in training,
    labels beyond the head's outputs.

    Example:
        >>> from metalearn.tasks import glyphs
        >>> from metalearn.data.labelled_sets import divided
        >>> parts = divided(glyphs("test", classes=3, drawers=10), 0.5)
        >>> train = finetune(parts.train, parts.test, steps=20, batch=8, evaluate_every=10)
        >>> curve = train(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), seed=0)
        >>> curve.steps, len(curve.losses)
        ((0, 10, 20), 20)
    """
    steps = whole_number("steps", steps)
    batch = whole_number("batch", batch)
    every = (
        max(1, steps // 20)
        if evaluate_every is None
        else whole_number("evaluate_every", evaluate_every)
    )
    early_stop = None if early_stop is None else whole_number("early_stop", early_stop)
    _check_choices(metric, optimizer, balance)
    _check_calls(transform=transform, augment=augment)
    _check_layers(lr, rates, frozen)
    train_set, test_set, validation = map(_structured, (train_set, test_set, validation))
    sources = [train_set, test_set] if validation is None else [train_set, test_set, validation]
    parts, names, record = in_memory_together(*sources)
    inputs, targets = parts[0]
    test_inputs, test_targets = parts[1]
    held = None if validation is None else parts[2]
    if early_stop is not None and held is None:
        raise ValueError(
            "early_stop needs validation=: stopping by the test set would choose the result by what"
            " it is judged on"
        )
    _check_labels(targets, test_targets, metric, names)
    _check_device(device)
    subset(targets, images, 0)
    classes = int(targets.max()) + 1
    options = (
        classes,
        steps,
        batch,
        lr,
        optimizer,
        every,
        metric,
        images,
        early_stop,
        balance,
        rates,
        frozen,
        transform,
        augment,
        device,
    )
    sets: list[Any] = [inputs, test_inputs, held[0] if held else None]
    for i, dataset in enumerate((train_set, test_set, validation)):
        if isinstance(dataset, Structured):
            sets[i] = dataset.inputs
    _check_entries(*sets)
    held = held and (sets[2], held[1])
    present = set(targets.tolist())
    absent = [name for number, name in enumerate(names) if number not in present]
    if absent:
        log.warning(
            "there is no training image of class %s: it is never predicted",
            ", ".join(map(repr, absent[:5])),
        )
        record["absent_classes"] = absent
    return FineTuning(sets[0], targets, sets[1], test_targets, held, *options, output, record)


def _check_entries(train: Inputs, test: Inputs, validation: Inputs | None) -> None:
    entries = list(named_tensors(train))
    for name, inputs in (("test", test), ("validation", validation)):
        if inputs is not None and list(named_tensors(inputs)) != entries:
            raise ValueError(
                f"the training set has {', '.join(entries)} and the {name} set"
                f" {', '.join(named_tensors(inputs))}; give both the same"
            )


class Structured:
    """A data set whose inputs are tuples or dictionaries: `inputs` has each of their tensors
    stacked, `[i]` only a position and a label.

    Raises ValueError, naming the item and the entry, if shapes differ, and TypeError if an entry is
    no tensor.
    """

    def __init__(self, dataset: Any) -> None:
        self.name = type(dataset).__name__
        items = [dataset[i] for i in range(len(dataset))]
        self.labels = [label for _, label in items]
        first = items[0][0]
        if isinstance(first, Mapping):
            self.inputs: Inputs = {key: self._stacked(items, key) for key in first}
        else:
            self.inputs = tuple(self._stacked(items, key) for key in range(len(first)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.tensor([float(index)]), self.labels[index]

    def _stacked(self, items: list[Any], key: Any) -> Tensor:
        tensors = []
        for i, (inputs, _) in enumerate(items):
            try:
                tensors.append(torch.as_tensor(inputs[key]))
            except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"entry {key!r} of item {i} of {self.name} is missing or no tensor ({error});"
                    " give every item one"
                ) from error
            if tensors[i].shape != tensors[0].shape:
                raise ValueError(
                    f"entry {key!r} of item {i} of {self.name} has shape {tuple(tensors[i].shape)}"
                    f" but item 0 has {tuple(tensors[0].shape)}; bring all to one shape, for"
                    " example by padding"
                )
        return torch.stack(tensors)


def _structured(dataset: Any) -> Any:
    """The data set itself, or `Structured` if its inputs are tuples or dictionaries."""
    if dataset is None or isinstance(dataset, LabelledImages):
        return dataset
    if isinstance(dataset, Tensor | str | bytes | Mapping) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            f"a {type(dataset).__name__} is no data set: it needs len() and [i], which gives pairs"
            " (image, label); put tensors into torch.utils.data.TensorDataset(images, labels)"
        )
    if not len(dataset):
        return dataset
    item = dataset[0]
    if isinstance(item, Mapping):
        raise TypeError(
            f"item 0 of {type(dataset).__name__} is a dictionary ({', '.join(map(str, item))});"
            " give pairs of inputs and label, such as ({'input_ids': ids, 'attention_mask':"
            " mask}, label)"
        )
    inputs = item[0] if isinstance(item, tuple | list) and len(item) == 2 else None
    several = isinstance(inputs, tuple | list) and all(
        isinstance(entry, Tensor | np.ndarray) for entry in inputs
    )
    return Structured(dataset) if isinstance(inputs, Mapping) or (several and inputs) else dataset


def named_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of a structure by name.

    Example:
        >>> list(named_tensors((torch.ones(1), torch.ones(1)))), list(named_tensors(torch.ones(1)))
        (['inputs.0', 'inputs.1'], ['inputs'])
    """
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    entries = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {f"inputs.{key}": tensor for key, tensor in entries}


def _rows(inputs: Inputs, index: Tensor, device: torch.device | None = None) -> Inputs:
    """The examples at `index` of every tensor, on the device."""
    return map_tensors(lambda tensor: tensor[index].to(device or tensor.device), inputs)


class _Log:
    """What a training writes down, and when it stops."""

    def __init__(self, plan: FineTuning, model: nn.Module, advance: Callable[..., None]) -> None:
        self.plan, self.model, self.advance = plan, model, advance
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.predicted: list[dict[int, int]] = []
        self.seconds = 0.0
        self.best, self.kept = 0, {}  # type: ignore[var-annotated]

    @property
    def stopped(self) -> bool:
        return (
            self.plan.early_stop is not None
            and len(self.steps) - 1 - self.best >= self.plan.early_stop
        )

    def trained(self, step: int, losses: Tensor, seconds: float) -> None:
        values = losses.tolist()  # waits for the device, so that the seconds are those of the work
        self.seconds += seconds
        self.losses += values
        broken = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if broken is not None:
            raise FloatingPointError(
                f"the loss is {values[broken]} at step {step - len(values) + 1 + broken}; a lower"
                " lr keeps it finite"
            )

    def evaluate(self, step: int) -> None:
        plan, done = self.plan, step - (self.steps[-1] if self.steps else 0)
        logits = self._logits(plan.test_inputs, plan.test_targets)
        found = scores(logits, plan.test_targets, plan.classes)
        self.steps.append(step)
        self.predicted.append(_counts(logits.argmax(1)))
        for name, value in found.items():
            self.scores.setdefault(name, []).append(value)
        if plan.validation:
            inputs, targets = plan.validation
            self.validation.append(
                scores(self._logits(inputs, targets), targets, plan.classes)[plan.metric]
            )
            if plan.early_stop is not None and self.validation[-1] > max(
                self.validation[:-1], default=-math.inf
            ):
                self.best = len(self.steps) - 1
                self.kept = {
                    name: tensor.detach().clone()
                    for name, tensor in self.model.state_dict().items()
                }
        if done:
            self.advance(done, f"{plan.metric} {found[plan.metric]:.3f}")

    def finish(self) -> Curve:
        plan, best = (
            self.plan,
            (self.best if self.plan.early_stop is not None else len(self.steps) - 1),
        )
        if self.kept and best != len(self.steps) - 1:
            self.model.load_state_dict(self.kept)
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
        )

    def _logits(self, inputs: Inputs, targets: Tensor) -> Tensor:
        logits = self.plan._logits(self.model, inputs, len(targets))
        most = max(self.plan.classes, int(targets.max()) + 1)
        if logits.ndim != 2:
            raise ValueError(
                f"{type(self.model).__name__} puts out {tuple(logits.shape[1:])} for an image;"
                f" fine-tuning needs one number a class, ({most},): add a pooling and a head, or"
                " name another entry with output="
            )
        if logits.shape[1] < most:
            raise ValueError(
                f"labels run to {most - 1}, but the head of {type(self.model).__name__} puts out"
                f" {tuple(logits.shape[1:])} for an image; build the model with outputs={most}"
            )
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"the predictions after {self.steps[-1] if self.steps else 0} steps are not finite;"
                " try a lower lr"
            )
        return logits


def subset(targets: Tensor, images: int | float | None, seed: int) -> Tensor:
    """Indices of `images` training images (a number, or a float up to 1 for a fraction), drawn by
    `seed`; each class keeps its share.

    Shares are rounded by largest remainder, and every class keeps one image at least. Raises
    ValueError where there are fewer images than classes, or more are asked for than there are.

    Example:
        >>> targets = torch.tensor([0] * 8 + [1] * 4)
        >>> targets[subset(targets, 6, seed=0)].tolist()
        [0, 0, 0, 0, 1, 1]
    """
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise TypeError(f"subset() needs integer labels (images,) as a tensor, not {targets!r:.60}")
    if not (images is None or isinstance(images, Real)) or isinstance(images, bool):
        raise TypeError(
            f"images={images!r} is a {type(images).__name__}; give a number of training images, or"
            " a fraction up to 1.0"
        )
    if images is None:
        return torch.arange(len(targets))
    counts = np.bincount(targets.numpy())
    present = counts > 0
    if not math.isfinite(images):
        raise ValueError(
            f"images={images}; give a number of training images, or a fraction up to 1.0"
        )
    wanted = (
        round(images * len(targets)) if isinstance(images, float) and images <= 1 else int(images)
    )
    if (wanted != images and not isinstance(images, float)) or wanted > len(targets):
        raise ValueError(
            f"images={images} but there are {len(targets)} training images; ask for at most that"
            " many, or a fraction up to 1.0"
        )
    if wanted < present.sum():
        raise ValueError(
            f"images={images} makes {wanted} training images of {present.sum()} classes; ask for"
            " one of each class at least"
        )
    exact = counts * wanted / len(targets)
    taken = np.where(present, np.maximum(1, np.floor(exact)), 0).astype(int)
    while taken.sum() != wanted:
        room = (
            np.where(taken < counts, exact - taken, -np.inf)
            if taken.sum() < wanted
            else np.where(taken > 1, taken - exact, -np.inf)
        )
        taken[room.argmax()] += 1 if taken.sum() < wanted else -1
    generator = np.random.default_rng(seed)
    members = [
        generator.permutation(np.flatnonzero(targets.numpy() == label))[:count]
        for label, count in enumerate(taken)
    ]
    return torch.from_numpy(np.sort(np.concatenate(members)))


def order(targets: Tensor, batch: int, seed: int, *, balanced: bool = False) -> Iterator[Tensor]:
    """Batches of indices without end: every epoch a new permutation by `seed`, or draws with each
    class equally likely.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(targets)
    chance = (1 / torch.bincount(targets).clamp(min=1).double())[targets]
    size = min(batch, count)
    while True:
        drawn = (
            torch.multinomial(chance, count, replacement=True, generator=generator)
            if balanced
            else None
        )
        epoch = torch.randperm(count, generator=generator) if drawn is None else drawn
        yield from epoch[: count - count % size].split(size)


def _check_choices(metric: str, optimizer: Any, balance: str | None) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}; choose {', '.join(METRICS)}")
    if not (callable(optimizer) or (isinstance(optimizer, str) and optimizer in OPTIMIZERS)):
        raise ValueError(
            f"optimizer={optimizer!r}; choose {', '.join(OPTIMIZERS)}, or pass a callable of"
            " (parameters, lr=)"
        )
    if not (balance is None or balance in ("loss", "batches")):
        raise ValueError(f"balance={balance!r}; choose 'loss', 'batches' or None")


def _check_layers(lr: Any, rates: object, frozen: object) -> None:
    if not (rates is None or isinstance(rates, Mapping)):
        raise TypeError(
            f"rates={rates!r} is a {type(rates).__name__}; give a dictionary, {{'layer1': 1e-4}},"
            " and lr= for all the rest"
        )
    if not (frozen is None or isinstance(frozen, str) or callable(frozen)):
        raise TypeError(
            f"frozen={frozen!r} is a {type(frozen).__name__}; name the last frozen layer, or pass a"
            " function such as linear_probe"
        )
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0 <= float(lr) < math.inf:
        raise ValueError(
            f"lr={lr!r} must be a finite number, zero or more, such as 1e-3; rates= takes one a"
            " layer"
        )


def _check_calls(**callables: Any) -> None:
    for name, value in callables.items():
        if value is not None and not callable(value):
            raise TypeError(
                f"{name}={value!r} is a {type(value).__name__}; pass a function of a batch of"
                " images, such as v2.Normalize"
            )


def _check_labels(train: Tensor, test: Tensor, metric: str, names: Sequence[str]) -> None:
    ours, theirs = set(train.unique().tolist()), set(test.unique().tolist())
    if len(ours) < 2:
        only = names[min(ours)]
        raise ValueError(
            f"the training set has one class ({only}) in all its {len(train)} images; there is"
            " nothing to tell apart"
        )
    if theirs - ours:
        missing = names[min(theirs - ours)]
        raise ValueError(
            f"the test set has the class {missing}, of which there is no training image; add some,"
            " or drop it"
        )
    if metric == "auc" and theirs != set(range(max(ours) + 1)):
        absent = [names[label] for label in sorted(set(range(max(ours) + 1)) - theirs)]
        raise ValueError(
            "metric='auc' needs every class in the test set, and it has no image of class"
            f" {absent[0]}"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=torch.device(device))
    except (
        RuntimeError,
        AssertionError,
        TypeError,
        ValueError,
    ) as error:  # torch asserts that it was built with CUDA
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); use cpu"
        ) from error


def _name(thing: Any) -> str | None:
    if thing is None or isinstance(thing, str):
        return thing
    return (
        f"{thing.__module__}.{thing.__qualname__}"
        if hasattr(thing, "__qualname__")
        else repr(thing)
    )
