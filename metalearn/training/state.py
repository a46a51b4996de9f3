"""The state of a training run: everything that a checkpoint stores."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metalearn.algorithms.base import Learner
from metalearn.engine.solver import device_of
from metalearn.evaluation import Tasks, describe, first_task
from metalearn.runtime import distributed, files, provenance, random_state
from metalearn.runtime.files import Record

from . import checkpoints

NOT_SAVED = "none was requested"


@dataclass
class Curve:
    """The course of a training run.

    Attributes:
        losses: the mean loss of every step's tasks.
        accuracies: the mean accuracy of every step's tasks; NaN for real targets.
        validation: a record of every validation: step, measure, mean, interval.
        seconds: the time spent in training steps, over all resumes.
        stopped: why a callback stopped the run early; empty if none did.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""

    def __repr__(self) -> str:
        if not self.losses:
            return "Curve(no steps)"
        parts = [f"{len(self.losses)} steps", f"last loss {self.losses[-1]:.4g}"]
        if self.best:
            parts.append(f"best validation {self.best['mean']:.4g} at step {self.best['step']}")
        parts.append(f"{self.seconds:.0f} s")
        if self.stopped:
            parts.append(f"stopped: {self.stopped}")
        return f"Curve({', '.join(parts)})"

    @property
    def best(self) -> Record | None:
        """The record of the best validation; None without any."""
        if not self.validation:
            return None
        # A loss is best when it is low, an accuracy when it is high.
        better = min if self.validation[0]["measure"] == "loss" else max
        return better(self.validation, key=lambda record: record["mean"])


@dataclass
class TrainingState:
    """All that decides the next step.

    Attributes:
        learner: its parameters are trained in place.
        optimizer: the outer optimizer.
        schedule: its schedule, if any.
        settings: what the run was started with (see `record_settings`).
        curve: the course so far.
        saved: the last checkpoint, for messages.
        best_weights: of the best validation, if no checkpoint holds them.
    """

    learner: Learner
    optimizer: Optimizer
    schedule: LRScheduler | None
    settings: Record = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)
    saved: str = NOT_SAVED
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.curve.losses)

    @property
    def device(self) -> torch.device:
        """Where the learner is."""
        return device_of(self.learner)

    def save(
        self, path: str | os.PathLike[str], write: Callable[..., None] = checkpoints.save
    ) -> None:
        """Write a checkpoint. Every rank must call it; the first one writes."""
        generators = distributed.all_gather(random_state.generators(self.device))
        if distributed.rank() == 0:
            write(path, *self._packed(generators))
        # On every rank: each may have to name it.
        self.saved = f"{os.fspath(path)} (step {self.step})"

    def keep_best(self) -> None:
        """Keep these weights in memory as those of the best validation."""
        self.best_weights = {
            name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()
        }

    def take_best(self, path: str | os.PathLike[str] | None) -> None:
        """Give the learner the weights of the best validation. Every rank must call this.

        Args:
            path: of the checkpoint; None if they are in memory.

        Raises:
            FileNotFoundError: the checkpoint of the best validation is missing.
            ValueError: it is another run's.
        """
        if self.curve.best is None:  # stopped before the first validation
            return
        weights = self.best_weights
        if path:
            file = best_checkpoint(path)
            loaded = _load_on_all_ranks(file)
            if loaded is None:
                raise FileNotFoundError(
                    f"the best checkpoint {file} is missing, and keep_best=True reads it; put it"
                    " back, or omit keep_best="
                )
            tensors, record = loaded
            if record["step"] != self.curve.best["step"]:
                raise ValueError(
                    f"{file} is at step {record['step']}, but the best validation of this run was"
                    f" at step {self.curve.best['step']}: it is another run's. Put the right one"
                    " back, or omit keep_best="
                )
            weights = checkpoints.of_learner(tensors)
        checkpoints.load_weights(self.learner, weights, "the best validation")

    def _packed(self, generators: list[Any]) -> tuple[dict[str, Tensor], Record]:
        """The tensors and the record of a checkpoint."""
        tensors = {
            checkpoints.WEIGHTS + name: tensor for name, tensor in self.learner.state_dict().items()
        }
        tensors["curve.losses"] = torch.tensor(self.curve.losses, dtype=torch.float64)
        tensors["curve.accuracies"] = torch.tensor(self.curve.accuracies, dtype=torch.float64)
        schedule = self.schedule.state_dict() if self.schedule else None
        record = {
            "step": self.step,
            "settings": self.settings,
            "versions": provenance.versions(),
            # Packing moves the tensors of a state into `tensors`.
            "optimizer": checkpoints.pack(self.optimizer.state_dict(), "optimizer", tensors),
            "schedule": checkpoints.pack(schedule, "schedule", tensors),
            "generators": generators,
            "validation": self.curve.validation,
            "seconds": self.curve.seconds,
        }
        return tensors, record

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take everything over from a checkpoint if the first rank finds one.

        Raises:
            ValueError: it is another run's.
        """
        loaded = _load_on_all_ranks(path)
        if loaded is None:
            return
        tensors, record = loaded
        provenance.check_same(self.settings, record["settings"], path)
        if record["versions"] != provenance.versions():
            warnings.warn(
                f"{os.fspath(path)} was written under {record['versions']} and goes on under"
                f" {provenance.versions()}, so its last bits may differ from an uninterrupted run",
                stacklevel=3,
            )
        weights = checkpoints.of_learner(tensors)
        checkpoints.load_weights(self.learner, weights, os.fspath(path))
        self.optimizer.load_state_dict(checkpoints.unpack(record["optimizer"], tensors))
        if self.schedule:
            self.schedule.load_state_dict(checkpoints.unpack(record["schedule"], tensors))
        rank = distributed.rank()
        # A run may go on with more ranks than it had.
        if rank < len(record["generators"]):
            random_state.set_generators(record["generators"][rank], self.device)
        self.curve = Curve(
            tensors["curve.losses"].tolist(),
            tensors["curve.accuracies"].tolist(),
            record["validation"],
            record["seconds"],
        )
        self.saved = f"{os.fspath(path)} (step {self.step})"


def best_checkpoint(path: str | os.PathLike[str]) -> str:
    """The file of the best validation, beside a checkpoint."""
    return f"{os.fspath(path)}.best"


def _load_on_all_ranks(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Record] | None:
    """The checkpoint that the first rank finds at a path; None if there is none."""
    content = None
    if distributed.rank() == 0:
        with contextlib.suppress(FileNotFoundError):
            tensors, record = checkpoints.load(path, set_aside=True)
            # As bytes, because only plain values go from rank to rank.
            content = safetensors.torch.save(tensors), record
    content = distributed.broadcast(content)
    if content is None:
        return None
    packed, record = content
    return safetensors.torch.load(packed), record


@contextlib.contextmanager
def resumed(
    state: TrainingState, checkpoint: str | os.PathLike[str] | None, steps: int
) -> Iterator[None]:
    """Lock a checkpoint, and go on from it, or write it before the first step.

    Raises:
        ValueError: it is another run's, or is past `steps`.
        OSError: another process holds it.
    """
    if not checkpoint:
        yield
        return
    with contextlib.ExitStack() as stack:
        refused = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(files.locked(checkpoint))
            except OSError as error:
                refused = error
        # The other ranks would wait for the first one for ever.
        distributed.raise_together(refused)
        state.resume(checkpoint)
        if state.step > steps:
            raise ValueError(
                f"{checkpoint} is at step {state.step} already, past steps={steps}; give more steps"
                " or name another checkpoint"
            )
        if state.step == 0:
            state.save(checkpoint)
        yield


@contextlib.contextmanager
def naming_the_checkpoint(state: TrainingState) -> Iterator[None]:
    """Name the last checkpoint if another rank dies."""
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; last checkpoint: {state.saved}. {distributed.CURE}"
        ) from error


def record_settings(
    state: TrainingState, episodes: Tasks, training: Record, settings: Record | None
) -> Record:
    """What a run was started with, as plain values, to be compared on resume.

    Args:
        state: before the first step.
        episodes: the training tasks.
        training: the settings of the outer loop.
        settings: the caller's own.
    """
    optimizer: Record = {"name": type(state.optimizer).__name__}
    for number, group in enumerate(state.optimizer.param_groups):
        optimizer[str(number)] = {
            name: setting for name, setting in group.items() if name != "params"
        }
    schedule = None
    if state.schedule:
        schedule = {"name": type(state.schedule).__name__, **state.schedule.state_dict()}
    record = {
        "learner": state.learner.settings(),
        "episodes": describe(episodes),
        "training": {**training, "optimizer": optimizer, "schedule": schedule},
        "run": settings or {},
    }
    # As a checkpoint's record will have it when it is read.
    return json.loads(json.dumps(record, default=_plain))


def _plain(value: Any) -> Any:
    """What JSON cannot hold as something it can: a tensor's values, a path, a class's name."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def decisive_settings(state: TrainingState, episodes: Tasks, plan: Record) -> Record:
    """All that decides the weights at the end and the calls that ranks make together.

    Args:
        state: before the first step.
        episodes: the training tasks.
        plan: the settings of the outer loop that a resume may change.

    Returns:
        Plain values that every rank must agree on; nothing for a single process.
    """
    if distributed.world_size() == 1:
        return {}
    learner = state.learner
    trained = learner.meta_parameters()
    weights = {}
    for name, tensor in learner.state_dict().items():
        is_trained = "trained" if name in trained else "not trained"
        weights[name] = f"{tuple(tensor.shape)} {tensor.dtype} {is_trained}"
    # The order of an optimizer's parameters decides which state belongs to which.
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    groups = {}
    for number, group in enumerate(state.optimizer.param_groups):
        groups[str(number)] = [names[id(parameter)] for parameter in group["params"]]
    return {
        "call": "meta_train",
        **state.settings,
        "run": {name: value for name, value in state.settings["run"].items() if name != "notes"},
        **plan,
        "weights": weights,
        "moving": list(learner.rates),
        "optimizer of": groups,
        "in evaluation mode": [
            name or "the learner" for name, module in learner.named_modules() if not module.training
        ],
        "first task": first_task(episodes, state.device),
        "versions": provenance.versions(),
    }
