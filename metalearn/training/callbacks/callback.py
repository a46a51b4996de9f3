"""What a callback is: plain methods that a training calls, and the signal that stops it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from metalearn.runtime.files import Record

EVENTS = ("on_start", "on_validation", "on_step", "on_checkpoint", "on_end")


class StopTraining(Exception):
    """Raised by a method of a callback to end a training early, with the reason as its text.

    The step is finished and the checkpoint written. The training then returns as it does after its
    last step, and `curve.stopped` is the reason. The same call continues it.

    Example:
        >>> raise StopTraining("the accuracy reached 0.99")
        Traceback (most recent call last):
        ...
        metalearn.training.callbacks.callback.StopTraining: the accuracy reached 0.99
    """


@dataclass(frozen=True)
class Status:
    """The state of a training when a callback is called.

    Attributes:
        call: the function that trains: "meta_train" or "finetune".
        step: the number of steps done.
        steps: the number of steps in all.
        model: what is trained: a learner, or a fine-tuned model.
        settings: what the run was started with, JSON-able.
        validates: whether the training has a validation set.
        validations: a record of every validation so far: step, measure, mean, interval. A loss is
            best when it is low, any other measure when it is high.
        accuracy: of the step's tasks; None without one.
        lr: the rate of the first group of parameters in this step; None before the first step.
        seconds: spent in training steps, over all resumes.
        scores: of `finetune` at an evaluation, the scores on the test set by name; empty otherwise.
        checkpoint: the file that a resumed run continues from; None without one.
        end: how the training ended: "" while it runs, then "finished", "stopped: ..." or "failed:
            ...", with the reason.
    """

    call: str
    step: int
    steps: int
    model: nn.Module
    settings: Record
    validates: bool = False
    validations: list[Record] = field(default_factory=list)
    # A tensor is read when it is asked for, because reading waits for a GPU.
    step_loss: Any = None
    accuracy: float | None = None
    lr: float | None = None
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    end: str = ""

    @property
    def loss(self) -> float | None:
        """The mean loss of this step; None before the first. Reading it waits for a GPU."""
        return None if self.step_loss is None else float(self.step_loss)

    @property
    def validation(self) -> Record | None:
        """The record of the validation at this step; None if there was none."""
        if self.validations and self.validations[-1]["step"] == self.step:
            return self.validations[-1]
        return None

    def record(self) -> Record:
        """This step as a line of a log."""
        record: Record = {"step": self.step}
        if self.loss is not None:
            record["loss"] = self.loss
        if self.lr is not None:
            record["lr"] = self.lr
        record["seconds"] = round(self.seconds, 3)
        if self.accuracy is not None:
            record["accuracy"] = self.accuracy
        if self.validation:
            record["validation"] = self.validation
        if self.scores:
            record["scores"] = self.scores
        return record

    def metrics(self) -> dict[str, float]:
        """This step as numbers by name, such as "training/loss" or "validation/accuracy"."""
        training = {"loss": self.loss, "accuracy": self.accuracy, "lr": self.lr}
        metrics = {
            f"training/{name}": value for name, value in training.items() if value is not None
        }
        if self.validation:
            metrics[f"validation/{self.validation['measure']}"] = self.validation["mean"]
        metrics |= {f"test/{name}": value for name, value in self.scores.items()}
        return {name: value for name, value in metrics.items() if not math.isnan(value)}


class Callback:
    """A callback that does nothing; override the methods that you need.

    Pass callbacks as `meta_train(..., callbacks=[...])` or `finetune(..., callbacks=[...])`. An
    object of any class with some of these methods will do.

    A method may end the training by raising. Whatever it raises, the step is finished and the
    checkpoint written first. `StopTraining` then ends the training as its last step does; any other
    error is raised.

    A callback sees the training and does not take part in it: the result is the same with and
    without it, also after a resume. Random numbers drawn in `on_step` alone change those that the
    training draws, in the same way after a resume. With several ranks, the first rank calls
    callbacks, and what one raises there stops all.

    Example:
        >>> class StopAtLowLoss(Callback):
        ...     def on_step(self, status):
        ...         if status.loss < 0.1:
        ...             raise StopTraining(f"the loss is {status.loss:.3f}")
    """

    def on_start(self, status: Status) -> None:
        """Called before the first step, also of a resumed run, whose `status.step` is not 0."""

    def on_validation(self, status: Status) -> None:
        """Called after every validation, and at every evaluation of `finetune`."""

    def on_step(self, status: Status) -> None:
        """Called at the end of every step, after its validation if there was one."""

    def on_checkpoint(self, status: Status) -> None:
        """Called after every checkpoint but the one before the first step."""

    def on_end(self, status: Status) -> None:
        """Called once at the end, also after an error; `status.end` says how it ended."""
