"""A training as its callbacks see it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.runtime.files import Record
from metalearn.training.callbacks import Status, StopTraining
from metalearn.training.callbacks.calls import Callbacks
from transfer.finetuning.history import History
from transfer.finetuning.state import Training


class Watch:
    """Calls the callbacks of one training, and says when it stops.

    Args:
        training: that runs.
        callbacks: checked.
        settings: of the training, for the callbacks.
        file: of its state; None if it is not saved.
        received: returns the signal that this process received, or None.
    """

    def __init__(
        self,
        training: Training,
        callbacks: Sequence[Any],
        settings: Record,
        file: Path | None,
        received: Callable[[], signal.Signals | None],
    ) -> None:
        self.training = training
        self.settings = settings
        self.file = file
        self.received = received
        self.callbacks = Callbacks(callbacks, training.device, self.status)
        self.step = training.history.updates
        self.loss: Tensor | None = None

    @property
    def stops(self) -> bool:
        """Whether a callback or a signal stops the training."""
        return self.callbacks.stops or self.received() is not None

    @property
    def reason(self) -> str:
        """Why a callback stopped the training; empty if none did."""
        raised = self.callbacks.raised
        return (str(raised) or "stopped") if isinstance(raised, StopTraining) else ""

    def stepped(self, step: int, loss: Tensor) -> None:
        """Call the callbacks after a step, evaluated or not."""
        self.step = step
        self.loss = loss
        if self.training.history.step == step:
            self.callbacks.call("on_validation")
        self.callbacks.call("on_step")

    def saved(self) -> None:
        """Call the callbacks after the state was written."""
        if self.file is not None:
            self.callbacks.call("on_checkpoint")

    def status(self, end: str) -> Status:
        """Where the training is."""
        history = self.training.history
        scores = {}
        if history.steps and history.step == self.step:
            scores = {name: values[-1] for name, values in history.scores.items()}
        return Status(
            call="finetune",
            step=self.step,
            steps=history.planned,
            model=self.training.model,
            settings=self.settings,
            validates=history.validation_set is not None,
            validations=_validations(history),
            step_loss=self.loss,
            lr=None if self.loss is None else self.training.optimizer.param_groups[0]["lr"],
            seconds=history.seconds,
            scores=scores,
            checkpoint=None if self.file is None else str(self.file),
            end=end,
        )


def _validations(history: History) -> list[Record]:
    """A record of every validation, as `meta_train` has them."""
    records = []
    for step, score in zip(history.steps, history.validation, strict=False):
        records.append({"step": step, "measure": history.metric, "mean": score, "interval": None})
    return records
