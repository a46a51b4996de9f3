"""Early stopping: a training ends when its validation no longer improves."""

from __future__ import annotations

from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record

from .callback import Callback, Status, StopTraining


class EarlyStopping(Callback):
    """Stops a training after `patience` validations without a better one.

    It decides by the validations in the checkpoint, so a resumed run stops at the same step. With
    `keep_best=True` the training ends with the weights of the best validation.

    Args:
        patience: validations without a better one.
        min_delta: how much better a validation must be to count.

    Raises:
        ValueError: the training has no validation set.

    Example:
        >>> import torch
        >>> from metalearn import MAML, meta_train
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> tasks = Sinusoid(shots=10, queries=10, tasks=100)
        >>> curve = meta_train(
        ...     learner,
        ...     tasks,
        ...     steps=20,
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-12),
        ...     validation=Sinusoid(shots=10, queries=10, tasks=5, seed=1),
        ...     validate_every=1,
        ...     callbacks=[EarlyStopping(patience=2, min_delta=0.1)],
        ...     progress=False,
        ... )
        >>> len(curve.losses)
        3
        >>> curve.stopped
        'no better validation loss for 2 validations; the best is ... at step 1'
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience = whole_number("patience", patience)
        if not min_delta >= 0:
            raise ValueError(f"min_delta={min_delta!r}; give a number from 0")
        self.min_delta = min_delta

    def on_start(self, status: Status) -> None:
        """Check that there is a validation; a run that had stopped does not go on."""
        if not status.validates:
            raise ValueError(
                f"EarlyStopping needs validations: pass validation= to {status.call}, or leave it"
                " out"
            )
        self._check(status)

    def on_validation(self, status: Status) -> None:
        """Stop if there was no better validation for too long."""
        self._check(status)

    def _check(self, status: Status) -> None:
        best, waited = self._best(status.validations)
        if waited >= self.patience:
            raise StopTraining(
                f"no better validation {best['measure']} for {waited} validations; the best is"
                f" {best['mean']:.4g} at step {best['step']}"
            )

    def _best(self, validations: list[Record]) -> tuple[Record, int]:
        """The best validation, and how many came after it."""
        best: Record = {}
        waited = 0
        for record in validations:
            if not best or self._gain(best, record) > self.min_delta:
                best = record
                waited = 0
            else:
                waited += 1
        return best, waited

    def _gain(self, before: Record, after: Record) -> float:
        """By how much a validation is better than one before; a loss is better when it is lower."""
        gain = after["mean"] - before["mean"]
        return -gain if after["measure"] == "loss" else gain
