"""Logs to MLflow."""

from __future__ import annotations

import re
from typing import Any

from metalearn.runtime.provenance import flat

from .callback import Status
from .metrics import MetricLogger, import_error

LONGEST = 500  # characters of a parameter that every store of MLflow takes
AT_ONCE = 100  # parameters in one call of MLflow


class MLflow(MetricLogger):
    """Logs loss, accuracy, rate, validations and scores to MLflow, and the settings as parameters.

    The run that is active goes on and stays open; without one, a run is opened. A resumed training
    continues its own run if `run_id` is given. Where runs are kept is MLflow's own setting:
    `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI.

    Args:
        every: steps from one log to the next. Validations and the last step are always logged.
        options: of `mlflow.start_run`, such as run_name, run_id, experiment_id, tags.

    Raises:
        ImportError: mlflow is not installed.

    Example:
        >>> MLflow(run_name="maml-seed0").options
        {'run_name': 'maml-seed0'}
    """

    def __init__(self, every: int = 10, **options: Any) -> None:
        super().__init__(every)
        self.options = options
        self._mlflow: Any = None
        self._opened = False

    def open(self, status: Status) -> None:
        """Open a run, unless one is active."""
        try:
            import mlflow
        except ImportError as error:
            raise import_error("MLflow", "mlflow") from error
        self._mlflow = mlflow
        self._opened = mlflow.active_run() is None
        if self._opened:
            mlflow.start_run(**self.options)
        # A resumed run has its parameters, which MLflow does not let anyone change.
        if status.step:
            return
        parameters = {}
        for name, value in flat(status.settings):
            parameters[re.sub(r"[^\w\-. /]", "_", name)] = str(value)[:LONGEST]
        names = list(parameters)
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            mlflow.log_params({name: parameters[name] for name in some})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers by name."""
        self._mlflow.log_metrics(metrics, step=step)

    def close(self, status: Status) -> None:
        """End the run, unless it was active before."""
        if self._opened:
            self._opened = False
            self._mlflow.end_run("FAILED" if status.end.startswith("failed") else "FINISHED")
