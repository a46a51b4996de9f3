"""Fine-tuning: the same training procedure for every initialisation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalearn.data.images import in_memory, in_memory_together
from metalearn.data.labelled_sequences import Sequences
from metalearn.network.forward import Inputs
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from metalearn.training.callbacks.calls import check_callbacks
from metalearn.training.penalty import Penalty
from transfer.finetuning.data import (
    Structured,
    WithNumbers,
    named_tensors,
    order,
    sequence_parts,
    structured,
    subset,
)
from transfer.finetuning.objectives import (
    Classification,
    Objective,
    RealTargets,
    check_defined,
    objective_of,
)
from transfer.finetuning.schedule import check_steps
from transfer.finetuning.snapshots import check_keep
from transfer.finetuning.training import OPTIMIZERS, FineTuning, Transform

__all__ = ["METRICS", "FineTuning", "finetune", "named_tensors", "order", "subset"]

log = logging.getLogger("metalearn")
CALLABLES = {
    "transform": "a function of a batch of images, such as v2.Normalize",
    "augment": "a function of a batch of images, such as v2.RandomCrop",
    "penalty": "a penalty, such as pulled(weights)",
}
METRICS = Classification.metrics


def finetune(
    train_set: Any,
    test_set: Any,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 1e-3,
    optimizer: str | Callable[..., Optimizer] = "adam",
    evaluate_every: int | None = None,
    loss: str | Objective = "cross_entropy",
    metric: str | None = None,
    images: int | float | None = None,
    validation: Any = None,
    early_stop: int | None = None,
    balance: str | None = None,
    rates: Mapping[str, float] | None = None,
    frozen: str | Mapping[str, int] | Callable[[nn.Module], Any] | None = None,
    transform: Transform | None = None,
    augment: Transform | None = None,
    device: str = "cpu",
    output: str | None = None,
    penalty: Penalty | None = None,
    keep: Sequence[int] = (),
    folder: str | os.PathLike[str] | None = None,
    decay: str | None = None,
    callbacks: Sequence[Any] | Callable[[int], Sequence[Any]] = (),
    keep_best: bool = False,
) -> FineTuning:
    """Make a function `train(model, seed)` that trains a model and returns a `Curve`.

    A model of several inputs takes data of (tuple of tensors, label), called as `model(*tensors)`,
    or of (dictionary of tensors, label), called as `model(**tensors)`. These tensors keep their
    dtype. `transform` and `augment` get the whole tuple or dictionary.

    With `folder`, the state of a training is written at every evaluation (`evaluate_every`), as
    `seed<seed>.training`: a file of the weights, the optimizer, the random generators, the scores
    and losses and what else decides the next step. The same `train(model, seed)` with the same
    settings, data and start then continues after the last evaluation, and ends with the same bits
    as a training that was never stopped; `curve.seconds` adds up. Other settings, data or weights
    are refused. A function counts by its name, so a changed function needs another folder. Only
    what a model has in parameters and buffers is kept. One folder takes trainings of several seeds.

    Args:
        train_set: a data set of (image, integer label), which is held in memory, such as
            `metalearn.tasks.LabelledImages` or a part of `metalearn.data.labelled_sets.load`. In
            place of an image there may be features or, as integers (tokens,), token ids. A set of
            `Sequences` may have several labels an example: the model then returns (examples,
            labels, classes), and loss and scores are over all labels.
        test_set: the same for the test scores.
        steps: updates of the weights.
        batch: images an update. The last images of an epoch that do not fill a batch are left out
            of it.
        lr: the rate of all parameters that `rates` does not name.
        optimizer: "adam", "adamw", "sgd" (momentum 0.9), or a callable of (parameter groups, lr=).
        evaluate_every: steps between tests; by default a twentieth of `steps`.
        loss: "cross_entropy" with integer labels; "soft", cross-entropy with the shares of votes,
            for data sets of (image, how many raters chose each class); or "mse", squared error with
            a number for each image, such as its `disagreement`.
        metric: with labels "accuracy" (the default), "balanced_accuracy" (the mean recall over
            classes) or "auc" (see `auc`); with the other losses "rank" (the default), Spearman's
            correlation of the predicted and the true disagreement, or "auc_above", the AUC of a
            disagreement above the mean of the training set; `loss=SoftVotes(above=0.3)` sets
            another threshold. All are recorded.
        images: how many of the training images, a number or (a float up to 1) a fraction; each
            class keeps its share, drawn by the seed.
        validation: a data set for early stopping.
        early_stop: stop after this many evaluations without a better validation score, and go back
            to the best.
        balance: for classes of different size: "loss" weights each image by `n / (classes * images
            of its class)`, "batches" draws each class equally often, None does nothing.
        rates: {module or parameter path: rate}, the longest match winning.
        frozen: the layer up to which nothing trains (see `freeze`); a function that freezes layers
            of a model: `linear_probe`, `frozen_transformer`; or {module or parameter path: step},
            each layer held from its step on (see `FreezeSchedule`).
        transform: applied to each batch of images (examples, channels, height, width) in [0, 1],
            such as `v2.Normalize(mean, std)`.
        augment: applied before `transform`, in training only.
        device: where to train.
        output: the entry of the model's output that holds the logits, if that is a tuple, a
            dictionary or a `ModelOutput`: "logits", "out", "0". Losses of auxiliary entries are not
            added. GoogLeNet and Inception have entries in training mode only.
        penalty: added to the loss at every step: `metalearn.training.regularisers`. The curve has
            losses and penalties apart.
        keep: numbers of updates after which to keep the weights, as `curve.snapshots`: in memory,
            or as safetensors files in `folder`.
        folder: where to keep a training, so that the same call continues it if it was stopped, and
            loads it if it was finished. See below.
        decay: "cosine" lowers all rates along half a cosine, from their values at the first step to
            zero after the last; None keeps them.
        callbacks: called on the way (see `metalearn.training.callbacks`): a list; or a function of
            the seed that makes one, so that each training has a log of its own. What one raises
            stops the training after this step, whose state is written first.
        keep_best: leave the model with the weights of the best validation score, which is then the
            one that counts; `early_stop` does so too.

    Returns:
        The training function.

    Raises:
        ValueError: settings or data do not fit: one class only, a class of the test set without
            training images, fewer images than classes, or an AUC that the test set does not define.
        TypeError: an argument is of another kind.

    Example:
        >>> from metalearn.tasks import glyphs
        >>> from metalearn.data.labelled_sets import divided
        >>> parts = divided(glyphs("test", classes=3, drawers=10), 0.5)
        >>> train = finetune(parts.train, parts.test, steps=20, batch=8, evaluate_every=10)
        >>> curve = train(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), seed=0)
        >>> curve.steps, len(curve.losses)
        ((0, 10, 20), 20)
    """
    # Settings are checked before any image is read.
    steps = whole_number("steps", steps)
    batch = whole_number("batch", batch)
    if evaluate_every is None:
        evaluate_every = max(1, steps // 20)
    evaluate_every = whole_number("evaluate_every", evaluate_every)
    if early_stop is not None:
        early_stop = whole_number("early_stop", early_stop)
    objective = objective_of(loss)
    if metric is None:
        metric = objective.metrics[0]
    _check_choices(metric, objective, optimizer, balance, decay)
    _check_calls(transform=transform, augment=augment, penalty=penalty)
    _check_layers(lr, rates, frozen)
    if isinstance(frozen, Mapping):
        frozen = check_steps(frozen, steps)
    keep = check_keep(keep, steps)
    if folder == "":
        raise ValueError("folder='' is empty; give the path of a folder, '.' for the current one")
    if not (folder is None or isinstance(folder, str | os.PathLike)):
        raise TypeError(
            f"folder={folder!r} is a {type(folder).__name__}; give the path of a folder, or None to"
            " keep nothing in files"
        )
    if early_stop is not None and validation is None:
        raise ValueError(
            "early_stop needs validation=: stopping by the test set would choose the result by what"
            " it is judged on"
        )
    if keep_best and validation is None:
        raise ValueError(
            "keep_best=True needs validation=: the best by the test set would choose the result by"
            " what it is judged on"
        )
    if not callable(callbacks):
        callbacks = check_callbacks(callbacks)
    _check_device(device)
    given = {"training": train_set, "test": test_set}
    if validation is not None:
        given["validation"] = validation
    labels: Record = {}
    if isinstance(objective, RealTargets):
        (train, test, *held_out), objective = _real_parts(given, objective, metric)
        classes = objective.outputs(train[1])
    else:
        (train, test, *held_out), labels = _parts(list(given.values()), metric)
        classes = int(train[1].max()) + 1
    inputs, targets = train
    several = targets.ndim > 1 and isinstance(objective, Classification)
    if several and (images is not None or balance == "batches"):
        raise ValueError(
            "images= and balance='batches' draw by the label of an example, and these have"
            f" {targets.shape[1]} labels each; leave them out, and make smaller sets instead"
        )
    subset(objective.labels(targets), images, 0)  # raises if so many images cannot be had
    return FineTuning(
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=test[0],
        test_targets=test[1],
        validation=held_out[0] if held_out else None,
        classes=classes,
        steps=steps,
        batch=batch,
        lr=lr,
        optimizer=optimizer,
        evaluate_every=evaluate_every,
        metric=metric,
        images=images,
        early_stop=early_stop,
        balance=balance,
        rates=rates,
        frozen=frozen,
        transform=transform,
        augment=augment,
        device=device,
        output=output,
        labels=labels,
        penalty=penalty,
        keep=keep,
        folder=folder,
        decay=decay,
        objective=objective,
        callbacks=callbacks,
        keep_best=keep_best,
    )


def _real_parts(
    given: Mapping[str, Any], objective: RealTargets, metric: str
) -> tuple[list[tuple[Inputs, Tensor]], RealTargets]:
    """Inputs and real targets of each data set, and the objective with its threshold."""
    sets = {name: WithNumbers(dataset, name) for name, dataset in given.items()}
    targets = {name: objective.read(dataset.targets, name) for name, dataset in sets.items()}
    for name, values in targets.items():
        if values.shape[1:] != targets["training"].shape[1:]:
            raise ValueError(
                f"the votes of the {name} set are of {values.shape[1]} classes and those of the"
                f" training set of {targets['training'].shape[1]}; give both the same classes"
            )
    objective = objective.fitted(targets["training"])
    check_defined(objective, targets, metric)
    inputs = [_inputs_of(dataset) for dataset in sets.values()]
    _check_entries(*inputs)
    paired = list(zip(inputs, targets.values(), strict=True))
    return paired, objective


def _inputs_of(dataset: WithNumbers) -> Inputs:
    """The inputs of a data set with real targets, in memory."""
    if isinstance(dataset.inputs, Tensor):
        return dataset.inputs
    readable = structured(dataset)
    if isinstance(readable, Structured):
        return readable.inputs
    return in_memory(readable)[0]


def _parts(given: Sequence[Any], metric: str) -> tuple[list[tuple[Inputs, Tensor]], Record]:
    """Read the data sets into memory, and check that they fit each other.

    Returns:
        Inputs and targets of the training set, the test set and, if there is one, the validation
        set; and a record of the labels.
    """
    train_set = given[0]
    if isinstance(train_set, Sequences):
        sequences = sequence_parts(*given)
        values = list(map(str, range(train_set.outputs)))
        _check_labels(sequences[0][1], sequences[1][1], metric, values)
        return sequences, {}
    sets = [structured(dataset) for dataset in given]
    # Labels have the same numbers in all parts; `names` are what they were.
    read, names, labels = in_memory_together(*sets)
    parts: list[tuple[Inputs, Tensor]] = []
    for dataset, (images, targets) in zip(sets, read, strict=True):
        # Of several inputs, only positions were read.
        inputs = dataset.inputs if isinstance(dataset, Structured) else images
        parts.append((inputs, targets))
    _check_labels(parts[0][1], parts[1][1], metric, names)
    _check_entries(*[inputs for inputs, _ in parts])
    absent = _absent(parts[0][1], names)
    if absent:
        log.warning(
            "there is no training image of class %s: it is never predicted",
            ", ".join(map(repr, absent[:5])),
        )
        labels["absent_classes"] = absent
    return parts, labels


def _absent(targets: Tensor, names: Sequence[str]) -> list[str]:
    """The names of classes without a training image."""
    present = set(targets.tolist())
    return [name for label, name in enumerate(names) if label not in present]


def _check_entries(train: Inputs, test: Inputs, validation: Inputs | None = None) -> None:
    entries = list(named_tensors(train))
    for name, inputs in (("test", test), ("validation", validation)):
        if inputs is not None and list(named_tensors(inputs)) != entries:
            raise ValueError(
                f"the training set has {', '.join(entries)} and the {name} set"
                f" {', '.join(named_tensors(inputs))}; give both the same"
            )


def _check_choices(
    metric: str, objective: Objective, optimizer: Any, balance: str | None, decay: str | None
) -> None:
    if metric not in objective.metrics:
        raise ValueError(f"metric={metric!r}; choose {', '.join(objective.metrics)}")
    if not (callable(optimizer) or (isinstance(optimizer, str) and optimizer in OPTIMIZERS)):
        raise ValueError(
            f"optimizer={optimizer!r}; choose {', '.join(OPTIMIZERS)}, or pass a callable of"
            " (parameters, lr=)"
        )
    if balance not in ("loss", "batches", None):
        raise ValueError(f"balance={balance!r}; choose 'loss', 'batches' or None")
    if decay not in ("cosine", None):
        raise ValueError(f"decay={decay!r}; choose 'cosine' or None")
    if balance is not None and isinstance(objective, RealTargets):
        raise ValueError(
            f"balance={balance!r} is for classes of different size, and this loss has real targets;"
            " leave it out"
        )


def _check_layers(lr: Any, rates: object, frozen: object) -> None:
    if not (rates is None or isinstance(rates, Mapping)):
        raise TypeError(
            f"rates={rates!r} is a {type(rates).__name__}; give a dictionary, {{'layer1': 1e-4}},"
            " and lr= for all the rest"
        )
    if not (frozen is None or isinstance(frozen, str | Mapping) or callable(frozen)):
        raise TypeError(
            f"frozen={frozen!r} is a {type(frozen).__name__}; name the last frozen layer, give a"
            " dictionary {layer: step}, or pass a function such as linear_probe"
        )
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0 <= float(lr) < math.inf:
        raise ValueError(
            f"lr={lr!r} must be a finite number, zero or more, such as 1e-3; rates= takes one for"
            " each layer"
        )


def _check_calls(**callables: Any) -> None:
    for name, value in callables.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; pass {CALLABLES[name]}")


def _check_labels(train: Tensor, test: Tensor, metric: str, names: Sequence[str]) -> None:
    trained = set(train.unique().tolist())
    tested = set(test.unique().tolist())
    if len(trained) < 2:
        only = names[min(trained)]
        raise ValueError(
            f"the training set has one class ({only}) in all its {len(train)} images; there is"
            " nothing to tell apart"
        )
    # No training could ever predict such a class.
    untrained = tested - trained
    if untrained:
        raise ValueError(
            f"the test set has the class {names[min(untrained)]}, but there is no training image of"
            " it; add some, or drop the class"
        )
    # The AUC of a class needs images of it.
    untested = set(range(max(trained) + 1)) - tested
    if metric == "auc" and untested:
        raise ValueError(
            "metric='auc' needs every class in the test set, and it has no image of class"
            f" {names[min(untested)]}"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=torch.device(device))
    # torch asserts that it was built with CUDA.
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); use cpu"
        ) from error
