"""What all loggers of numbers have in common: when they log."""

from __future__ import annotations

from metalearn.runtime.checks import whole_number

from .callback import Callback, Status


class MetricLogger(Callback):
    """Logs the numbers of a step; a logger is a subclass with `open`, `write` and `close`.

    Args:
        every: steps from one log to the next. Validations and the last step are always logged.

    Example:
        >>> class Print(MetricLogger):
        ...     def write(self, metrics, step):
        ...         print(step, metrics)
        >>> status = Status("meta_train", 1, 9, model=None, settings={}, step_loss=0.5)
        >>> Print().on_step(status)
        1 {'training/loss': 0.5}
    """

    def __init__(self, every: int = 1) -> None:
        self.every = whole_number("every", every)

    def open(self, status: Status) -> None:
        """Open the log of a run that is at `status.step`."""

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers by name."""

    def close(self, status: Status) -> None:
        """Close the log; `status.end` says how the training ended."""

    def on_start(self, status: Status) -> None:
        """Open the log."""
        self.open(status)

    def on_validation(self, status: Status) -> None:
        """Log the scores before the first step; others are logged with their step."""
        if status.step == 0:
            self.write(status.metrics(), 0)

    def on_step(self, status: Status) -> None:
        """Log the step if it is due."""
        if is_due(status, self.every):
            self.write(status.metrics(), status.step)

    def on_end(self, status: Status) -> None:
        """Close the log."""
        self.close(status)


def is_due(status: Status, every: int) -> bool:
    """Whether a logger that logs every so many steps logs this one."""
    evaluated = status.validation is not None or bool(status.scores)
    return status.step % every == 0 or evaluated or status.step == status.steps


def import_error(callback: str, package: str, extra: str = "") -> ImportError:
    """The error for a logger whose package is not installed."""
    install = f"'metalearn-transfer[{extra}]'" if extra else package
    return ImportError(
        f"{callback} needs the package {package}: pip install {install}, or leave {callback} out of"
        " callbacks="
    )
