"""Logs to Weights & Biases."""

from __future__ import annotations

from typing import Any

from .callback import Status
from .metrics import MetricLogger, import_error


class WandB(MetricLogger):
    """Logs loss, accuracy, rate, validations and scores to Weights & Biases.

    A resumed training continues its own run if `id` and `resume="allow"` are given. W&B then passes
    over steps that it has already.

    Args:
        every: steps from one log to the next. Validations and the last step are always logged.
        run: a run that is open already; it stays open. None opens one.
        options: of `wandb.init`, such as project, name, id, resume, mode="offline". The settings of
            the training are the run's config, unless `config` is given.

    Raises:
        ImportError: wandb is not installed.

    Example:
        >>> WandB(project="few-shot", id="maml-seed0", resume="allow").options["project"]
        'few-shot'
    """

    def __init__(self, every: int = 10, run: Any = None, **options: Any) -> None:
        super().__init__(every)
        self.options = options
        self._given = run
        self._run: Any = None

    def open(self, status: Status) -> None:
        """Open a run."""
        if self._given is not None:
            self._run = self._given
            return
        try:
            import wandb
        except ImportError as error:
            raise import_error("WandB", "wandb") from error
        self._run = wandb.init(**{"config": status.settings, **self.options})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers by name."""
        self._run.log(metrics, step=step)

    def close(self, status: Status) -> None:
        """Finish the run; one that was given stays open."""
        if self._run is not None and self._given is None:
            self._run.finish(exit_code=int(status.end.startswith("failed")))
        self._run = None
