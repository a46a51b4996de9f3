"""Optuna prunes trials that do worse than others."""

from __future__ import annotations

from typing import Any

from .callback import Callback, Status
from .metrics import import_error


class OptunaPruning(Callback):
    """Reports every validation to a trial of Optuna, and stops the training if it is pruned.

    A pruned training raises `optuna.TrialPruned`, which the study takes, after its checkpoint is
    written. The study's direction must be that of the measure: "maximize" an accuracy, "minimize" a
    loss.

    Args:
        trial: of `study.optimize`.

    Raises:
        ValueError: the training has no validation set.

    Example:
        def objective(trial):
            learner = MAML(Conv4(5), lr=trial.suggest_float("lr", 1e-3, 1.0, log=True))
            curve = meta_train(learner, tasks, validation=held_out, steps=5000, validate_every=250,
                               callbacks=[OptunaPruning(trial)])
            return curve.best["mean"]

        study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
        study.optimize(objective, n_trials=50)
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_start(self, status: Status) -> None:
        """Check that there is a validation."""
        if not status.validates:
            raise ValueError(
                f"OptunaPruning needs validations: pass validation= to {status.call}, or leave it"
                " out"
            )

    def on_validation(self, status: Status) -> None:
        """Report the validation; raise if the trial is pruned."""
        if status.validation is None:
            return
        self.trial.report(status.validation["mean"], status.step)
        if self.trial.should_prune():
            try:
                import optuna
            except ImportError as error:
                raise import_error("OptunaPruning", "optuna") from error
            raise optuna.TrialPruned(f"pruned at step {status.step}")
