"""Logs to Trackio."""

from __future__ import annotations

from typing import Any

from metalearn.runtime.provenance import flat

from .callback import Status
from .metrics import MetricLogger, import_error


class Trackio(MetricLogger):
    """Logs loss, accuracy, rate, validations and scores to Trackio, on this machine.

    `trackio show` draws them. A resumed training continues its own run if `name` and
    `resume="allow"` are given; steps that run again are then logged twice.

    Args:
        project: of the runs.
        every: steps from one log to the next. Validations and the last step are always logged.
        options: of `trackio.init`, such as name, resume, space_id. The settings of the training are
            the run's config, unless `config` is given.

    Raises:
        ImportError: trackio is not installed.

    Example:
        >>> Trackio("few-shot", name="maml-seed0").project
        'few-shot'
    """

    def __init__(self, project: str, every: int = 10, **options: Any) -> None:
        super().__init__(every)
        self.project = project
        self.options = options
        self._run: Any = None

    def open(self, status: Status) -> None:
        """Open a run."""
        try:
            import trackio
        except ImportError as error:
            raise import_error("Trackio", "trackio") from error
        config = dict(flat(status.settings))
        self._run = trackio.init(self.project, **{"config": config, **self.options})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers by name."""
        self._run.log(metrics, step=step)

    def close(self, status: Status) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None
